"""Turns how training tiles are to be read into one checked record."""

from __future__ import annotations

import os
from dataclasses import dataclass

from embedcache.errors import ConfigError
from embedcache.store.reading.checks import Check, check_word
from embedcache.store.reading.order import Order
from embedcache.train.feed.sequence import share

FEW_THREADS, MORE_THREADS, MANY_CORES = 2, 4, 8
"""Threads that read, and more of them from so many cores on."""


@dataclass(frozen=True)
class FeedOptions:
    """How training tiles are read; none of it but ``batch_size``, ``seed`` and ``order`` changes what is read.

    Parameters
    ----------
    batch_size : int
        Images of a step, of all processes together.
    seed : int
    images_per_call : int
        Images of one call of the decoder.
    threads : int, optional
        Threads that read; default: 2, or 4 where there are 8 cores.
    check : "always", "once" or "never"
        See :class:`~embedcache.store.reader.EmbeddingReader`.
    resident : "auto", "gpu", "ram" or "disk"
        See :func:`~embedcache.store.reading.resident.choose_residence`.
    order : Order, optional
        Default: chosen by this machine's memory. A run that goes on, and other processes, are given the first's.
    rank, world : int
        This process, of how many.
    processes_here : int
        Of these on this machine.
    ahead : int
        Steps that are made ready ahead of the one that computes.

    Raises
    ------
    ConfigError
        When one of them is out of range.
    """

    batch_size: int
    seed: int
    images_per_call: int = 1
    threads: int | None = None
    check: Check = "always"
    resident: str = "auto"
    order: Order | None = None
    rank: int = 0
    world: int = 1
    processes_here: int = 1
    ahead: int = 2

    def __post_init__(self) -> None:
        share(self.batch_size, self.rank, self.world)
        check_word(self.check)
        for name in ("images_per_call", "threads", "processes_here"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if self.ahead < 0:
            raise ConfigError(f"ahead is {self.ahead}; it must not be negative.")

    @property
    def readers(self) -> int:
        """Threads that read."""
        if self.threads is not None:
            return self.threads
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return MORE_THREADS if cores >= MANY_CORES else FEW_THREADS
