"""What the faults happen to: small volumes, a checkpoint, undisturbed stores; and how stores are compared.

The volume has six planes of one tile each; two tiles make a shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.files import disk as disk_module
from embedcache.sam import resolve_weights
from embedcache.store import EmbeddingStore
from embedcache.store.writer import StoreWriter

from . import encoder
from .child import Before, Child, command, start

TILES = 6
SHARD_TILES = 2
SIDE = 64

CHUNK_BYTES = 256 * 64 * 64 * 2 + 4
"""One float16 embedding and its checksum in a shard, as docs/format.md says."""

WHOLE = "whole.zarr"
HALF = "half.zarr"
"""Tiles 0, 2 and 4, one of every shard's two: the rest replaces all three shards."""

INT8 = "int8.zarr"

SMALL = "small.zarr"
SMALL_TILES = 3
SMALL_HALF = "small-half.zarr"
"""Of a volume of three planes the first: the rest replaces one shard and adds one."""


@dataclass
class Stage:
    """Where a row's trials happen.

    Parameters
    ----------
    base : Path
        What is made once: volumes, checkpoints, undisturbed stores. Never changed.
    folder : Path
        This row's own folder; ``folder / "trial"`` is emptied before each trial.
    data : dict
        What the row's ``prepare`` made.
    """

    base: Path
    folder: Path
    data: dict[str, Any] = field(default_factory=dict)
    _started: int = 0

    @property
    def here(self) -> Path:
        """The trial's own folder."""
        return self.folder / "trial"

    @property
    def volume(self) -> Path:
        """The volume that the undisturbed stores are of."""
        return self.base / "scan.npy"

    @property
    def whole(self) -> Path:
        """A complete store that nobody disturbed."""
        return self.base / WHOLE

    @property
    def half(self) -> Path:
        """The same with every second tile only."""
        return self.base / HALF

    @property
    def small_volume(self) -> Path:
        """A volume of three planes, for rows that go through each step of a command."""
        return self.base / "small.npy"

    def fresh(self) -> None:
        """Empty the trial's folder."""
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that several rows share: made by the first that asks for it."""
        target = self.base / name
        with (self.base / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_size == 0:
                target.mkdir()
                make(target)
                lock.write("made")
                lock.flush()
        return target

    def copy(self, source: Path, name: str = "s.zarr") -> Path:
        """A copy of a store, for this trial to break."""
        target = self.here / name
        shutil.copytree(source, target, symlinks=True)
        return target

    def log(self) -> Path:
        """A name for the output of the next command."""
        self._started += 1
        return self.here / "log" / str(self._started)

    def run(self, *arguments: str | Path, before: Before = lambda: None) -> Child:
        """Run a command to its end."""
        return command(arguments, self.log(), before)

    def start(self, *arguments: str | Path, before: Before = lambda: None) -> Child:
        """Start a command."""
        return start(arguments, self.log(), before)

    def encode(self, store: Path, *more: str | Path, **changes: str | Path | None) -> list[str | Path]:
        """The words of an ``encode``; ``changes`` are options by their names, None leaves one out."""
        options: dict[str, str | Path | None] = {
            "volume": self.volume,
            "store": store,
            "model": "patches",
            "checkpoint": self.base / "patches.pth",
            "tile": str(SIDE),
            "shard_tiles": str(SHARD_TILES),
            "precision": "fp32",
            "device": "cpu",
        }
        words: list[str | Path] = ["encode", "--json"]
        for name, value in (options | changes).items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", value]
        return [*words, *more]


def make_base(base: Path) -> None:
    """Make what all rows share: volumes, checkpoints, undisturbed stores."""
    base.mkdir(parents=True)
    np.save(base / "scan.npy", planes(0))
    np.save(base / "other.npy", planes(1))
    for model in ("patches", "ill"):
        encoder.write_checkpoint(base / f"{model}.pth", model)
        resolve_weights(model, str(base / f"{model}.pth"))
    encoder.write_checkpoint(base / "other.pth", "patches", seed=1)
    stage = Stage(base, base / "made")
    stage.fresh()
    np.save(stage.small_volume, planes(2, SMALL_TILES))
    small = {"volume": stage.small_volume}
    for words in (
        stage.encode(stage.whole),
        stage.encode(stage.half, z_range=f"0:{TILES}:2"),
        stage.encode(base / SMALL, **small),
        stage.encode(base / SMALL_HALF, z_range="0:1", **small),
        stage.encode(base / INT8, store_dtype="int8"),
    ):
        child = stage.run(*words)
        if child.code != 0 and "int8" not in map(str, words):
            raise AssertionError(f"an undisturbed encode ended with {child.code}: {child.said[-2000:]}")


def planes(seed: int, count: int = TILES) -> np.ndarray:
    """Noise, nowhere white or black enough for the ``ill`` encoder."""
    return np.random.default_rng(seed).integers(1, 250, (count, SIDE, SIDE), dtype=np.uint8)


class Watch:
    """What a command does, counted in memory that it shares with the trial: still there after a kill.

    Attributes
    ----------
    calls : int
        Images that went through the encoder.
    steps : int
        Steps that changed a disk, as far as a counting disk was installed.
    acknowledged : set of int
        Tiles whose commit returned.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8192)
        self._numbers = np.frombuffer(self._memory, np.int64)

    @property
    def calls(self) -> int:
        return int(self._numbers[0])

    @property
    def steps(self) -> int:
        return int(self._numbers[1])

    @property
    def acknowledged(self) -> set[int]:
        return set(np.flatnonzero(self._numbers[16:512]).tolist())

    def forget_calls(self) -> None:
        """Count calls from 0 again."""
        self._numbers[0] = 0

    def step(self) -> int:
        """Count one step; returns its number, from 1."""
        self._numbers[1] += 1
        return int(self._numbers[1])

    def install(self) -> None:
        """In the child: count."""

        def on_call(images: int) -> None:
            self._numbers[0] += images

        encoder.on_call = on_call
        commit = StoreWriter.commit_shard

        def commit_shard(writer: StoreWriter, shard: int, **given: Any) -> Any:
            done = commit(writer, shard, **given)
            for tile in given["embeddings"]:
                self._numbers[16 + tile] = 1
            return done

        StoreWriter.commit_shard = commit_shard  # type: ignore[method-assign]


class CountingDisk(disk_module.Disk):
    """The real disk, and a call before each of its steps."""

    def __init__(self, on_step: Callable[[str], None]) -> None:
        self._on_step = on_step


def _stepping(name: str) -> Callable[..., Any]:
    def method(self: CountingDisk, *arguments: Any) -> Any:
        self._on_step(name)
        return getattr(disk_module.Disk, name)(self, *arguments)

    return method


STEPS = tuple(name for name in vars(disk_module.Disk) if not name.startswith("_"))
for _name in STEPS:
    setattr(CountingDisk, _name, _stepping(_name))


def content(store: Path) -> dict[str, str]:
    """Digest of every file of a store that is the same whatever happened on the way: not journal and litter."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] != "journal" and path.suffix != ".partial"
    }


def litter(store: Path, *, wrote: bool = True) -> list[str]:
    """What a killed writer left behind; ``wrote``: whether another one has written since, which cleans it up."""
    found = [*store.rglob("*.partial"), *store.glob("journal/locks/*")] if wrote else []
    return [str(path.relative_to(store)) for path in found]


def known(store: Path) -> dict[int, tuple[int, str]]:
    """Of every committed tile: the recorded CRC of its bytes, and the digest of its pixels."""
    opened = EmbeddingStore.open(store)
    found = {}
    for number in map(int, np.flatnonzero(opened.committed)):
        record = opened.record(number)
        found[number] = (record.crc32c, record.input_digest)
    return found


def require_same(store: Path, expected: dict[str, str], words: str = "") -> None:
    """Refuse a store that is not, file by file, what an undisturbed run gives."""
    found = content(store)
    if found != expected:
        names = sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))
        raise AssertionError(f"{words}: not the bytes of an undisturbed run: {', '.join(names[:6])}")


def stored(store: Path) -> dict[int, str]:
    """Digest of every committed embedding as the store's reader gives it; raises what the reader raises."""
    opened = EmbeddingStore.open(store)
    reader = opened.reader()
    return {
        number: hashlib.sha256(reader.read([number]).numpy().tobytes()).hexdigest()
        for number in map(int, np.flatnonzero(opened.committed))
    }
