"""A training that was killed or stopped anywhere goes on to the bits and rows of one that was not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_faults import InterruptedDisk
from safetensors.torch import load_file
from training_stores import blob_labels, labelled_folder, make_store
from view_samples import give_views

from embedcache.errors import Interrupted
from embedcache.files import disk as disk_module
from embedcache.progress import Silent
from embedcache.train import Run, train

LABELS = blob_labels(4, 64, 64)
STEPS = 4
OPTIONS: dict[str, Any] = {
    "val": "3:4", "steps": STEPS, "batch_size": 1, "accumulate": 2, "ema": 0.5, "adapter": True, "lr": 1e-3,
    "validate_every": 3, "save_every": 2, "patience": 0, "logger": "none", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = labelled_folder(tmp_path_factory.mktemp("resume"), LABELS)
    give_views(make_store(folder / "views.zarr", LABELS), LABELS)
    return folder


def go(folder: Path, out: Path, store: str = "s.zarr", **more: Any) -> Run:
    return train(folder / store, folder / "l.npy", out=out, **OPTIONS, **more)


@pytest.fixture(scope="module")
def counted(folder: Path) -> tuple[Run, int]:
    """The run that nobody disturbed, and its steps that change the disk."""
    disk = InterruptedDisk(-1, lambda: None)
    kept = disk_module.disk
    disk_module.set_disk(disk)
    try:
        return go(folder, folder / "whole"), -1 - disk.left
    finally:
        disk_module.set_disk(kept)


@pytest.fixture(scope="module")
def whole(counted: tuple[Run, int]) -> Run:
    return counted[0]


def require_same(run: Run, whole: Run) -> None:
    """The same weights, figures and rows, but for what is measured in seconds."""
    for name in ("best.safetensors", "last.safetensors"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    rows = [[untimed(row) for row in one.metrics] for one in (run, whole)]
    assert rows[0] == rows[1]
    assert untimed(run.summary) == untimed(whole.summary)
    assert not list(run.path.rglob("*.partial"))


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    timed = {"seconds", "data_wait", "samples_per_second", "data_wait_fraction", "peak_memory_bytes"}
    return {name: value for name, value in row.items() if name not in timed | {"run", "checkpoint"}}


class DiesAfter(Silent):
    """A progress in which the process is killed after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= steps
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(act: Callable[[], object]) -> int:
    """How a child process ended that did this: its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_between_saves(folder: Path, whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert in_a_child(lambda: go(folder, out, progress=DiesAfter(3))) == -signal.SIGKILL
    require_same(go(folder, out, resume=True), whole)


def test_killed_between_saves_where_views_are_drawn(folder: Path, whole: Run, tmp_path: Path) -> None:
    out, store = tmp_path / "run", "views.zarr"
    viewed = go(folder, tmp_path / "viewed", store)
    assert viewed.summary["views"] == [0, 2, 4, 6]
    assert viewed.metrics[-2]["loss"] != whole.metrics[-2]["loss"]  # others than view 0 were drawn
    assert in_a_child(lambda: go(folder, out, store, progress=DiesAfter(3))) == -signal.SIGKILL
    require_same(go(folder, out, store, resume=True), viewed)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_killed_at_any_write(folder: Path, counted: tuple[Run, int], tmp_path: Path, share: float) -> None:
    out, (whole, writes) = tmp_path / "run", counted
    assert in_a_child(lambda: go_interrupted(folder, out, round(share * writes))) == 9
    require_same(go(folder, out, resume=True), whole)


def go_interrupted(folder: Path, out: Path, at: int) -> None:
    disk_module.set_disk(InterruptedDisk(at, lambda: os._exit(9)))
    go(folder, out)


def test_stopped_by_a_signal_it_ends_its_step_saves_and_goes_on_from_there(
    folder: Path, whole: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = threading.Event()
    said: list[str] = []

    class Hears(Silent):
        def advance(self, steps: int = 1, note: str = "") -> None:
            asked.set()

        def say(self, line: str) -> None:
            said.append(line)

    with pytest.raises(Interrupted, match="stopped after step 2") as stop:
        go(folder, out, progress=Hears(), stop=lambda: signal.SIGTERM if asked.is_set() else None)
    assert stop.value.exit_code == 143
    require_same(go(folder, out, progress=Hears(), resume=True), whole)
    assert any("going on from step 2" in line for line in said)


def test_one_seed_gives_the_same_bits_again_whatever_reads_and_where_from(
    folder: Path, whole: Run, tmp_path: Path
) -> None:
    run = go(folder, tmp_path / "run", read_threads=1, resident="disk", check_reads="once")
    for name in ("best.safetensors", "last.safetensors"):
        assert tensors(run.path / name) == tensors(whole.path / name)


def tensors(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
