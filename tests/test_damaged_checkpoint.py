"""A damaged checkpoint is corruption to every command that takes one; what never was one is wrong input."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from training_stores import blob_labels, make_store, save_labels

from embedcache.cli.app import run as command
from embedcache.train import train

LABELS = blob_labels(6, 32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its labels, and a run of two steps: ``run``."""
    folder = tmp_path_factory.mktemp("damaged")
    store, labels = make_store(folder / "s.zarr", LABELS, tile=32), save_labels(folder / "l.npy", LABELS)
    train(store, labels, out=folder / "run", steps=2, logger="none", batch_size=1, device="cpu")
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def words_of(name: str, folder: Path, checkpoint: Path) -> list[str]:
    data = ["--store", str(folder / "s.zarr"), "--labels", str(folder / "l.npy"), "--device", "cpu"]
    out = str(checkpoint.parent / "made")
    words = {
        "predict": ["predict", *data[:2], "--checkpoint", str(checkpoint), "--output", out + ".tif"],
        "evaluate": ["evaluate", *data, "--checkpoint", str(checkpoint)],
        "export": ["export", str(checkpoint), "--output", out + ".pth"],
        "train": [
            "train",
            *data,
            "--init",
            str(checkpoint),
            "--out",
            out,
            "--steps",
            "1",
            "--logger",
            "none",
        ],
    }
    return words[name]


@pytest.mark.parametrize("offset", [3, 60, -7])
@pytest.mark.parametrize("name", ["predict", "evaluate", "export", "train"])
def test_each_command_ends_with_4_and_names_the_file_and_another(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str], name: str, offset: int
) -> None:
    flip(run / "best.safetensors", offset)
    assert command(words_of(name, folder, run / "best.safetensors")) == 4
    said = capsys.readouterr().err
    assert f"{run / 'best.safetensors'} is a damaged checkpoint" in said
    assert str(run / "last.safetensors") in said


def test_a_damaged_state_ends_a_resumed_training_with_4_and_names_the_best(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "resume.safetensors", -7)
    (run / "summary.json").unlink()
    data = ["--store", str(folder / "s.zarr"), "--labels", str(folder / "l.npy"), "--device", "cpu"]
    words = ["train", *data, "--out", str(run), "--resume", "--steps", "2", "--logger", "none"]
    assert command([*words, "--batch-size", "1"]) == 4
    said = capsys.readouterr().err
    assert "resume.safetensors is damaged" in said
    assert f"--init {run / 'best.safetensors'}" in said


@pytest.mark.parametrize("name", ["predict", "evaluate", "export", "train"])
def test_what_never_was_a_checkpoint_ends_with_2_and_says_what_is_expected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(LABELS[0]).save(picture)
    assert command(words_of(name, folder, picture)) == 2
    said = capsys.readouterr().err
    assert f"{picture} is no checkpoint" in said
    assert "best.safetensors" in said
    assert ("random:SEED" in said) == (name == "train")
