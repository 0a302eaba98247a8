"""Disks that are full or may not be written: exit 6, and the same command goes on when there is room."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .outcome import LostError, Outcome, Row, detected
from .stage import CHUNK_BYTES, SIDE, Stage, Watch, content, known, litter, require_same
from .truth import has_command, named

DECODER_BYTES = 16 << 20


@contextmanager
def mounted(kind: str, place: Path, *options: str) -> Iterator[Path]:
    """A file system mounted for the block."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", *options, *(("-t", "tmpfs", "tmpfs") if kind == "tmpfs" else ()), str(place)], check=True
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def cannot_mount() -> str | None:
    """Why file systems cannot be mounted here; None when they can."""
    probe = Path(f"/tmp/embedcache-mount-probe-{os.getpid()}")
    try:
        with mounted("tmpfs", probe, "-o", "size=1m"):
            return None
    except (OSError, subprocess.CalledProcessError):
        return "mounting needs root"
    finally:
        if probe.exists():
            probe.rmdir()


def _prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)


def _full(stage: Stage, megabytes: float, _: Random) -> Outcome:
    """The store lies on a file system that fills up in the middle; then that grows, and the same command goes on.

    The space check before the first byte is passed by, as when somebody else fills the disk meanwhile.
    """
    with mounted("tmpfs", stage.here / "disk", "-o", f"size={int(megabytes * 1024)}k") as disk:
        store = disk / "s.zarr"
        watch = Watch()

        def before() -> None:
            from embedcache.encode.plan import EncodePlan

            watch.install()
            EncodePlan.require_space = lambda *_: None  # type: ignore[method-assign]

        child = stage.run(*stage.encode(store), before=before)
        assert child.code == 6, f"exit code {child.code} at {megabytes} MB: {child.said[-800:]}"
        named(child.said, "No space left on device", "[Ff]ree some space")
        kept = set(known(store)) if (store / "zarr.json").exists() else set()
        if watch.acknowledged - kept:
            raise LostError(f"tiles {sorted(watch.acknowledged - kept)} are gone")
        if kept and has_command("verify"):
            verified = stage.run("verify", store, "--json")
            assert verified.code == 0, f"verify on the full disk: {verified.said[-500:]}"
        subprocess.run(["mount", "-o", "remount,size=128m", str(disk)], check=True)
        again = stage.run(*stage.encode(store))
        assert again.code == 0, again.said[-800:]
        require_same(store, stage.data["expected"], "after the disk grew")
        assert not litter(store, wrote=True), litter(store)
    return detected(most_tiles_kept=len(kept))


def _refused_before(stage: Stage, megabytes: float, _: Random) -> Outcome:
    """The same with the check: refused before the first byte, naming what is needed and free."""
    with mounted("tmpfs", stage.here / "disk", "-o", f"size={int(megabytes * 1024)}k") as disk:
        child = stage.run(*stage.encode(disk / "s.zarr"))
        assert child.code == 6, f"exit code {child.code}: {child.said[-800:]}"
        named(child.said, "need", "free", "Nothing was written")
        assert not any(disk.iterdir()), "something was written"
    return detected()


def _too_long(stage: Stage, limit: int, _: Random) -> Outcome:
    """No file may be longer than a limit (``ulimit -f``)."""
    store = stage.here / "s.zarr"

    def before() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    child = stage.run(*stage.encode(store), before=before)
    assert child.code == 6, f"exit code {child.code}: {child.said[-800:]}"
    named(child.said, "File too large", str(stage.here))
    again = stage.run(*stage.encode(store))
    assert again.code == 0, again.said[-500:]
    require_same(store, stage.data["expected"], "without the limit")
    return detected()


def _read_only(stage: Stage, case: str, _: Random) -> Outcome:
    """A complete store and a partial one on a file system that may only be read."""
    whole = case != "widen"
    store = stage.copy(stage.whole if whole else stage.half)
    place = stage.here / "only"
    with mounted("bind", place, "--bind", str(store.parent)) as here:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(here)], check=True)
        target = here / store.name
        if case == "widen":
            watch = Watch()
            child = stage.run(*stage.encode(target), before=watch.install)
            assert child.code == 6, f"exit code {child.code}: {child.said[-800:]}"
            named(child.said, "Read-only file system|read-only")
            assert watch.calls == 0, "tiles were encoded before it was found"
        elif case == "encode":
            child = stage.run(*stage.encode(target))
            assert child.code == 0, f"nothing had to be written: {child.said[-800:]}"
        elif case == "train":
            child = stage.run(*_training(stage, target))
            assert child.code == 0, f"exit code {child.code}: {child.said[-800:]}"
        else:
            child = stage.run(case, target, "--json")
            assert child.code == 0, f"{case}: exit code {child.code}: {child.said[-800:]}"
    return detected()


def _training(stage: Stage, store: Path) -> Sequence[str | Path]:
    labels = stage.here / "labels.npy"
    values = np.zeros((6, SIDE, SIDE), dtype=np.uint8)
    values[:, 10:40, 20:50] = 255
    np.save(labels, values)
    out = stage.folder / "run"
    return [
        "train",
        "--store",
        store,
        "--labels",
        labels,
        "--out",
        out,
        "--steps",
        "1",
        "--device",
        "cpu",
        "--json",
    ]


def _read_only_cases(_: Any) -> list[str]:
    return ["widen", "encode", "status", "train", *(["verify"] if has_command("verify") else [])]


def row(name: str, fault: str, promise: str, trial: Callable[..., Outcome], **more: Any) -> Row:
    """A row that needs to mount."""
    return Row(name, fault, promise, trial, prepare=_prepare, needs=cannot_mount, **more)


ROWS = (
    row(
        "full-disk",
        "a small tmpfs fills up at different places of an encode",
        "exit 6 naming it, committed tiles stay and verify; with more room the same command ends as undisturbed",
        _full,
        cases=lambda _: [0.5, 2, 8, 15.9, 16.5, 17, 18.2, 20, 20.4, 21, 22.5, 24.6, 26, 27],
        weight=12,
    ),
    row(
        "too-small-disk",
        "a disk that is too small from the start",
        "exit 6 before the first byte, naming what is needed and free",
        _refused_before,
        cases=lambda _: [1, 8, 20],
        weight=2,
    ),
    Row(
        "file-size-limit",
        "files may not grow beyond a limit (`RLIMIT_FSIZE`)",
        "exit 6 naming the file; without the limit the same command ends as undisturbed",
        _too_long,
        cases=lambda _: [5000, 170_000, CHUNK_BYTES, 2 * CHUNK_BYTES, DECODER_BYTES // 2],
        prepare=_prepare,
        weight=5,
    ),
    row(
        "read-only",
        "a store on a read-only bind mount",
        "it is read, trained from and verified; encode exits 6 before the first tile is encoded",
        _read_only,
        cases=_read_only_cases,
        weight=8,
    ),
)
