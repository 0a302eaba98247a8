"""What a training says: how its figures were asked, what it draws from, and where it stands when it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_stores import blob_labels, make_store, save_labels
from view_samples import give_views

from embedcache.cli.app import run as command
from embedcache.errors import Interrupted
from embedcache.progress import Silent
from embedcache.train import train

LABELS = blob_labels(6, 32, 32)
QUICK = {"logger": "none", "batch_size": 1, "device": "cpu"}


class Listener(Silent):
    """Keeps what is said and begun; presses Ctrl-C after some steps."""

    def __init__(self, after: int = 0) -> None:
        self.said: list[str] = []
        self.begun: list[tuple[str, int, int]] = []
        self.left = after

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.begun.append((what, total, done))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("said")
    make_store(folder / "s.zarr", LABELS, tile=32)
    save_labels(folder / "l.npy", LABELS)
    return folder


@pytest.mark.parametrize(("prompts", "apart"), [("none", False), ("points", True)])
def test_the_command_names_the_prompts_of_each_figure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: str, apart: bool
) -> None:
    words = ["train", "--store", str(folder / "s.zarr"), "--labels", str(folder / "l.npy"), "--steps", "1"]
    words += ["--out", str(tmp_path / "run"), "--logger", "none", "--device", "cpu", "--batch-size", "1"]
    assert command([*words, "--prompts", prompts]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert table.count("(prompts none, free)") == 2  # the best, and the untrained decoder
    assert ("interactive dice" in table) == apart
    assert (f"(prompts {prompts}, oracle)" in table) == apart
    assert f"trained with prompts {prompts}" in table


def test_a_run_that_goes_on_counts_from_where_it_stands(folder: Path, tmp_path: Path) -> None:
    options = {**QUICK, "out": tmp_path / "run", "steps": 4, "validate_every": 2, "save_every": 1}
    with pytest.raises(Interrupted):
        train(folder / "s.zarr", folder / "l.npy", progress=Listener(4), **options)
    listener = Listener()
    train(folder / "s.zarr", folder / "l.npy", progress=listener, resume=True, **options)
    assert listener.begun == [("train", 4, 3)]


def test_a_store_with_views_is_said_to_be_drawn_from(folder: Path, tmp_path: Path) -> None:
    viewed = give_views(make_store(tmp_path / "v.zarr", LABELS, tile=32), LABELS)
    for views, words in (
        ("auto", "tiles have 4 views (flips): one of a tile's views is drawn each epoch, of 16 embeddings"),
        ("off", "tiles have 4 views (flips), but training takes them as they lie only."),
    ):
        listener = Listener()
        train(
            viewed,
            folder / "l.npy",
            out=tmp_path / views,
            steps=1,
            views=views,
            progress=listener,
            **QUICK,
        )
        assert any(words in line for line in listener.said)
    listener = Listener()
    train(folder / "s.zarr", folder / "l.npy", out=tmp_path / "plain", steps=1, progress=listener, **QUICK)
    assert not any("tiles have" in line for line in listener.said)
