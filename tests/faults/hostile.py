"""Stores and checkpoints from a stranger: nothing runs, nothing outside is read or written, no claim believed."""

from __future__ import annotations

import os
import pickle
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from .attacks import ATTACKS
from .child import Child
from .identity import every_byte
from .outcome import Outcome, Row, SilentError, detected, survived
from .stage import Stage, content, planes, require_same
from .truth import has_command

ADDRESS_SPACE = 2 << 30
"""Bytes that a command may reserve beyond what it starts with."""

MEMORY = 300 << 20
SECONDS = 30.0
REFUSED = {2, 3, 4, 6}


# ---- checkpoints


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.open, (self._path, os.O_CREAT | os.O_WRONLY)


def _plain_pickle(path: Path, payload: Touch) -> None:
    path.write_bytes(pickle.dumps(payload))


def _zip_nested(path: Path, payload: Touch) -> None:
    torch.save({"model_state": {"image_encoder.patch.weight": torch.zeros(2)}, "optimizer": [payload]}, path)


def _zip_in_state(path: Path, payload: Touch) -> None:
    torch.save({"image_encoder.patch.weight": payload}, path)


def _legacy(path: Path, payload: Touch) -> None:
    torch.save({"state_dict": {"a": payload}}, path, _use_new_zipfile_serialization=False)


def _legacy_tar(path: Path, payload: Touch) -> None:
    """torch's format of before 0.1.10, a tar of pickles."""
    folder = path.with_suffix(".parts")
    folder.mkdir()
    for name in ("storages", "tensors", "pickle"):
        (folder / name).write_bytes(pickle.dumps(payload))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(folder / name, name)


CHECKPOINTS: dict[str, Callable[[Path, Touch], None]] = {
    "plain pickle": _plain_pickle,
    "zip, beside tensors": _zip_nested,
    "zip, as a tensor": _zip_in_state,
    "legacy": _legacy,
    "legacy tar": _legacy_tar,
}


def _checkpoint_trial(stage: Stage, case: tuple[str, str, str], _: Random) -> Outcome:
    kind, ending, place = case
    marker = stage.here / "executed"
    file = stage.here / f"weights{ending}"
    CHECKPOINTS[kind](file, Touch(marker))
    if place == "encode":
        words = stage.encode(stage.here / "s.zarr", checkpoint=file)
    elif place == "predict":
        words = ["predict", "--store", stage.whole, "--checkpoint", file, "--output", stage.here / "o.zarr"]
    else:
        labels = stage.here / "labels.npy"
        np.save(labels, planes(0) > 100)
        words = [
            "train",
            "--store",
            stage.whole,
            "--labels",
            labels,
            "--init",
            file,
            "--out",
            stage.here / "run",
        ]
    child = stage.run(*words)
    if marker.exists():
        raise SilentError(f"{kind}{ending} given to {place}: its code was executed")
    assert child.code in REFUSED, (
        f"{kind}{ending} given to {place}: exit code {child.code}: {child.said[-500:]}"
    )
    return detected()


def _store_trial(stage: Stage, name: str, _: Random) -> Outcome:
    """A hostile store is given to every command that opens one."""
    store, outside = stage.copy(stage.half), stage.here / "outside"
    outside.mkdir()
    (outside / "precious").write_text("as it was")
    ATTACKS[name](store, outside)
    before = {path: (mode, data) for path, (mode, data) in every_byte(outside).items()}
    refusals = 0
    most = slowest = 0.0
    commands: list[list[str | Path]] = [["status", store, "--json"]]
    if has_command("verify"):
        commands.append(["verify", store, "--json"])
    commands.append(stage.encode(store))
    if has_command("repair"):
        volume = ["--volume", stage.volume, "--checkpoint", stage.base / "patches.pth", "--device", "cpu"]
        commands.append(["repair", store, "--json", *volume])
    for words in commands:
        begin = time.monotonic()
        child, memory = _limited(stage, words)
        seconds = time.monotonic() - begin
        most, slowest = max(most, memory), max(slowest, seconds)
        what = f"{name}, given to {words[0]}"
        assert child.code in {0, *REFUSED}, f"{what}: exit code {child.code}: {child.said[-700:]}"
        assert "Traceback" not in child.said, f"{what}: {child.said[-700:]}"
        assert seconds < SECONDS, f"{what}: {seconds:.1f} s"
        assert memory < MEMORY, f"{what}: {memory / 2**20:.0f} MiB more than at its start"
        refusals += child.code != 0
        if every_byte(outside) != before:
            raise SilentError(f"{what}: something outside the store was changed")
        if words[0] == "repair" and child.code == 0:
            break
    if not refusals:
        require_same(store, stage.data["expected"], f"{name}: no command refuses it, and")
        return survived(most_megabytes=most / 2**20)
    return detected(most_megabytes=most / 2**20, most_seconds=slowest)


def _prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)


def _limited(stage: Stage, words: list[str | Path]) -> tuple[Child, float]:
    """Run a command that may not reserve much memory; the bytes that it came to hold more than at its start."""
    report = stage.log().with_suffix(".memory")

    def before() -> None:
        pages = [int(value) for value in Path("/proc/self/statm").read_text().split()]
        size = pages[0] * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(str(pages[1] * resource.getpagesize()))

    child = stage.start(*words, before=before)
    child.wait()
    start = int(report.read_text())
    return child, max(0.0, child.most_memory - start)


ROWS = (
    Row(
        "hostile-checkpoints",
        "pickles that run code, as checkpoints of encode, predict and train",
        "refused, nothing executed",
        _checkpoint_trial,
        cases=lambda _: [
            (kind, ending, place)
            for kind in CHECKPOINTS
            for ending in (".pth", ".safetensors")
            for place in ("encode", "predict", "train")
        ],
        weight=6,
    ),
    Row(
        "hostile-stores",
        "links, pipes, devices and sparse files in a store; metadata that claims anything, its checksums right",
        f"refused in under {SECONDS:.0f} s and {MEMORY >> 20} MiB, nothing outside read through or written",
        _store_trial,
        prepare=_prepare,
        cases=lambda _: list(ATTACKS),
        weight=70,
    ),
)
