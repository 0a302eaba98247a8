"""Turns tile numbers into ``ReadTile`` values, in order, read ahead of the encoder by a few threads.

A tile that cannot be encoded is not an exception here: it comes back with the reason, the other tiles go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.encode.empty import empty_reason, is_empty
from embedcache.encode.stages import Stages
from embedcache.encode.threads import POLL_SECONDS, started
from embedcache.errors import VolumeError
from embedcache.geometry import Tile
from embedcache.volume import Preprocess, Volume, pixel_digest
from embedcache.volume.normalise import normalise

READER_THREADS = 2

HUNG_SECONDS = 2.0
"""How long the end of a run waits for a thread that hangs in a read, which nothing can interrupt."""


@dataclass(frozen=True)
class ReadTile:
    """One tile as it comes from the source.

    Parameters
    ----------
    number : int
        Tile number.
    scaled : (C, h, w) uint8, uint16 or float32, or None
        The host's share of SAM's input; None when skipped or failed.
    digest : str
        Digest of the source pixels; empty when they could not be read.
    skipped, failed : str or None
        Why the tile is not encoded: skipped on purpose, or failed.
    read_seconds, preprocess_seconds : float
        Time spent on it.
    preprocess : Preprocess
        That it went through.
    """

    number: int
    scaled: npt.NDArray[Any] | None
    digest: str
    skipped: str | None
    failed: str | None
    read_seconds: float
    preprocess_seconds: float
    preprocess: Preprocess

    @property
    def input(self) -> npt.NDArray[np.float32] | None:
        """SAM's input (3, 1024, 1024); None when skipped or failed."""
        if self.scaled is None:
            return None
        finished: npt.NDArray[np.float32] = normalise(torch.from_numpy(self.scaled), self.preprocess)[
            0
        ].numpy()
        return finished


def read_tile(
    volume: Volume, preprocess: Preprocess, number: int, tile: Tile, *, empty: float | None
) -> ReadTile:
    """Read one tile and do the host's share of preprocessing it.

    Parameters
    ----------
    volume, preprocess
        What is read, and how.
    number, tile
        The tile.
    empty : float or None
        The tile is skipped where no pixel is above this; at 0 where all are zero. None: it is not.
    """
    begin = time.perf_counter()
    try:
        pixels = preprocess.read(volume, tile)
    except (VolumeError, OSError, ValueError, RuntimeError) as error:
        # Decoders of damaged chunks raise all of these; the tile is named, the others go on.
        reason = f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return ReadTile(number, None, "", None, reason, time.perf_counter() - begin, 0.0, preprocess)
    digest = pixel_digest(pixels)
    read = time.perf_counter()
    skipped = empty_reason(empty) if empty is not None and is_empty(pixels, empty) else None
    failed = _why_unusable(pixels)
    scaled = None if skipped or failed else preprocess.to_scaled(pixels)
    after = time.perf_counter() - read
    return ReadTile(number, scaled, digest, skipped, failed, read - begin, after, preprocess)


def _why_unusable(pixels: npt.NDArray[np.generic]) -> str | None:
    if not np.issubdtype(pixels.dtype, np.floating):
        return None
    bad = int(np.count_nonzero(~np.isfinite(pixels)))
    return f"{bad} of {pixels.size} input pixels are NaN or infinite" if bad else None


@dataclass(frozen=True)
class _Order:
    """A tile that a thread is to read, and where its answer goes."""

    number: int
    tile: Tile
    answer: SimpleQueue[ReadTile | BaseException]


class ReadAhead:
    """Reads tiles in order while the caller works on earlier ones; used as a context, iterated once.

    Parameters
    ----------
    volume, preprocess
        What is read, and how.
    tiles : iterable of (int, Tile)
        In the order in which they are given back.
    empty : float or None
        Tiles with no pixel above this are left out, see :func:`read_tile`.
    ahead : int
        Tiles that wait in memory at most.
    stages : Stages
        Where time is noted.
    """

    def __init__(
        self,
        volume: Volume,
        preprocess: Preprocess,
        tiles: Iterable[tuple[int, Tile]],
        *,
        empty: float | None,
        ahead: int,
        stages: Stages,
    ) -> None:
        self._stages = stages
        self._volume, self._preprocess, self._tiles = volume, preprocess, iter(tiles)
        self._empty, self._ahead = empty, max(ahead, 1)
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._over = threading.Event()
        self._awaited: tuple[int, float] | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ReadAhead:
        self._threads = [started(self._read, f"embedcache-read-{at}") for at in range(READER_THREADS)]
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for _reading in self._threads:
            self._orders.put(None)
        for reading in self._threads:
            reading.join(HUNG_SECONDS)

    def end(self) -> None:
        """Read no more; whoever iterates comes to the end."""
        self._over.set()

    @property
    def awaited(self) -> tuple[int, float] | None:
        """The tile that the caller waits for, and since when (``time.monotonic``); None when it does not wait."""
        return self._awaited

    def __iter__(self) -> Iterator[ReadTile]:
        """The tiles; ends early when the context is left."""
        waiting: deque[_Order] = deque()
        more = True
        while more or waiting:
            while more and len(waiting) < self._ahead:
                following = next(self._tiles, None)
                more = following is not None
                if following is not None:
                    waiting.append(_Order(*following, SimpleQueue()))
                    self._orders.put(waiting[-1])
            if waiting:
                found = self._answer(waiting.popleft())
                if found is None:
                    return
                yield found

    def _answer(self, order: _Order) -> ReadTile | None:
        self._awaited = order.number, time.monotonic()
        try:
            while not self._over.is_set():
                try:
                    found = order.answer.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
                if isinstance(found, BaseException):
                    raise found
                return found
            return None
        finally:
            self._awaited = None

    def _read(self) -> None:
        while (order := self._orders.get()) is not None and not self._over.is_set():
            begin = time.perf_counter()
            try:
                found = read_tile(self._volume, self._preprocess, order.number, order.tile, empty=self._empty)
            except BaseException as error:  # whatever it is, it ends the run where the tile is waited for
                order.answer.put(error)
            else:
                self._stages.add("read", found.read_seconds, begin)
                self._stages.add("preprocess", found.preprocess_seconds, begin + found.read_seconds)
                order.answer.put(found)
