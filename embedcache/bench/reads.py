"""Turns a number of made-up embeddings into a ``ReadBench``: how fast each way reads them, shuffled, in turns.

All ways read the same embeddings in batches into the same memory, in a new order each round. What the system has
cached is read warm; ways that are measured cold have files of their own, which are dropped from its cache first.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.bench.machine import machine
from embedcache.bench.made_up_store import fill, make_store
from embedcache.bench.readers import WAYS, Place, Read, Way, memory_for
from embedcache.errors import ConfigError
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.store.layout import shard_path
from embedcache.store.shards.shard import FLOAT16

RATIO_OF = "ours"
"""Whose ratio is the one that counts."""

TURN_SECONDS = 0.2
"""A warm turn repeats passes for at least as long, so that short ones are measured well."""


@dataclass(frozen=True)
class ReadBench:
    """What was measured of all ways in one run.

    Parameters
    ----------
    tiles, batch, rounds : int
        Embeddings of a pass and of a batch; turns that each way took.
    seconds, cpu_seconds : dict of str to tuple of float
        Seconds per embedding of each round, by way: on the clock; and of the processor, which other work disturbs
        less.
    not_run : dict of str to str
        The others, and why.
    machine : dict
    """

    tiles: int
    batch: int
    rounds: int
    seconds: dict[str, tuple[float, ...]]
    cpu_seconds: dict[str, tuple[float, ...]]
    not_run: dict[str, str]
    machine: dict[str, object]

    def ratios(self, seconds: dict[str, tuple[float, ...]] | None = None) -> dict[str, float]:
        """How fast each way is, beside the one that it is compared with."""
        medians = {name: statistics.median(found) for name, found in (seconds or self.seconds).items()}
        return {
            way.name: medians[way.reference] / medians[way.name]
            for way in WAYS
            if way.name in medians and way.reference in medians
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache bench read --json``."""
        medians = {name: statistics.median(found) for name, found in self.seconds.items()}
        ratios = self.ratios()
        return {
            "ratio": ratios.get(RATIO_OF),
            "ratio_of": RATIO_OF,
            "ratios": ratios,
            "cpu_ratios": self.ratios(self.cpu_seconds),
            "references": {way.name: way.reference for way in WAYS if way.name in medians},
            "seconds": medians,
            "mb_per_second": {name: FLOAT16.payload_bytes / 1e6 / one for name, one in medians.items()},
            "not_run": self.not_run,
            "tiles": self.tiles,
            "batch": self.batch,
            "rounds": self.rounds,
            "machine": self.machine,
        }


def bench_reads(
    progress: Progress,
    *,
    tiles: int = 256,
    batch: int = 32,
    rounds: int = 7,
    folder: str | Path | None = None,
    only: Sequence[str] = (),
) -> ReadBench:
    """Measure every way of reading, in turns.

    Parameters
    ----------
    progress : Progress
    tiles, batch, rounds : int
        See :class:`ReadBench`.
    folder : path, optional
        On the disk that is to be measured; default: that of temporary files. Nothing stays there.
    only : sequence of str
        Names of ways; default: all.

    Raises
    ------
    ConfigError
        For a number below 1, or a name of none.
    """
    for name, value in (("--tiles", tiles), ("--batch-size", batch), ("--rounds", rounds)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    ways = _chosen(only)
    with tempfile.TemporaryDirectory(prefix="embedcache-bench-", dir=folder) as name:
        progress.say(f"{tiles} embeddings are written to {name} …")
        warm, cold = _write(Path(name), tiles, batch)
        built: dict[str, Read] = {}
        not_run: dict[str, str] = {}
        for way in ways:
            try:
                built[way.name] = way.build(cold if way.cold else warm)
                if not way.cold:
                    built[way.name](
                        [list(range(tiles))[at : at + batch] for at in range(0, tiles, batch)] * 2
                    )
            except Exception as error:  # of other people's libraries: whatever it is, the others go on
                if not way.others:
                    raise
                built.pop(way.name, None)
                not_run[way.name] = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        running = [way for way in ways if way.name in built]
        seconds, cpu = _take_turns(running, built, cold, tiles, batch, rounds, progress)
    return ReadBench(tiles, batch, rounds, seconds, cpu, not_run, machine(torch.device("cpu")))


def _chosen(only: Sequence[str]) -> list[Way]:
    known = {way.name for way in WAYS}
    unknown = sorted(set(only) - known)
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r} is none of {', '.join(way.name for way in WAYS)}.")
    wanted = set(only) | {way.reference for way in WAYS if way.name in only}
    return [way for way in WAYS if not only or way.name in wanted]


def _take_turns(
    ways: Sequence[Way],
    built: dict[str, Read],
    cold: Place,
    tiles: int,
    batch: int,
    rounds: int,
    progress: Progress,
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Seconds per embedding of each way in each round, on the clock and of the processor."""
    rng = np.random.default_rng(0)
    wall: dict[str, list[float]] = {way.name: [] for way in ways}
    cpu: dict[str, list[float]] = {way.name: [] for way in ways}
    progress.start("rounds", rounds)
    for _ in range(rounds):
        order = rng.permutation(tiles).tolist()
        batches = [order[at : at + batch] for at in range(0, tiles, batch)]
        for way in ways:
            read = built[way.name]
            if way.cold:
                read = way.build(cold)  # with files that nobody holds
                _drop(cold)
            begin, worked, passes = time.perf_counter(), time.process_time(), 0
            while not passes or (not way.cold and time.perf_counter() - begin < TURN_SECONDS):
                read(batches)
                passes += 1
            wall[way.name].append((time.perf_counter() - begin) / passes / tiles)
            cpu[way.name].append((time.process_time() - worked) / passes / tiles)
        progress.advance(1)
    progress.finish()
    return {name: tuple(found) for name, found in wall.items()}, {n: tuple(found) for n, found in cpu.items()}


def _drop(place: Place) -> None:
    """Out of the system's cache with a store's shards; they are on the disk since they were written."""
    for shard in range(place.store.n_shards):
        descriptor = os.open(shard_path(place.store.path, shard), os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _write(folder: Path, tiles: int, batch: int) -> tuple[Place, Place]:
    """A store, the same as one plain file, and a copy of the store for cold reads."""
    rng, out = np.random.default_rng(0), memory_for(batch)
    store = make_store(folder / "warm.zarr", tiles)
    plain = np.lib.format.open_memmap(
        folder / "plain.npy", mode="w+", dtype=np.float16, shape=(tiles, *EMBEDDING_SHAPE)
    )
    for number in range(tiles):
        plain[number] = rng.standard_normal(EMBEDDING_SHAPE, np.float32)
    fill(store, tiles, lambda number: torch.from_numpy(plain[number]))
    plain.flush()
    shutil.copytree(store.path, folder / "cold.zarr")
    cold = EmbeddingStore.open(folder / "cold.zarr")
    return Place(store, folder / "plain.npy", out), Place(cold, folder / "plain.npy", out)
