"""Turns tile numbers into ``ReadTile`` values, in order, read ahead of the encoder by a few threads.

A tile that cannot be encoded is not an exception here: it comes back with the reason, the other tiles go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.geometry import Tile
from embedcache.volume import Preprocess, Volume, pixel_digest

READER_THREADS = 2
EMPTY = "empty"


@dataclass(frozen=True)
class ReadTile:
    """One tile as it comes to the encoder.

    Parameters
    ----------
    number : int
        Tile number.
    input : (3, 1024, 1024) float32 or None
        SAM's input; None when skipped or failed.
    digest : str
        Digest of the source pixels; empty when they could not be read.
    skipped, failed : str or None
        Why the tile is not encoded: skipped on purpose, or failed.
    read_seconds, preprocess_seconds : float
        Time spent on it.
    """

    number: int
    input: npt.NDArray[np.float32] | None
    digest: str
    skipped: str | None
    failed: str | None
    read_seconds: float
    preprocess_seconds: float


def read_tile(
    volume: Volume, preprocess: Preprocess, number: int, tile: Tile, *, skip_empty: bool
) -> ReadTile:
    """Read one tile and turn it into SAM's input."""
    begin = time.perf_counter()
    try:
        pixels = preprocess.read(volume, tile)
    except (VolumeError, OSError, ValueError, RuntimeError) as error:
        # Decoders of damaged chunks raise all of these; the tile is named, the others go on.
        reason = f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return ReadTile(number, None, "", None, reason, time.perf_counter() - begin, 0.0)
    digest = pixel_digest(pixels)
    read = time.perf_counter()
    skipped = EMPTY if skip_empty and not np.any(pixels) else None
    failed = _why_unusable(pixels)
    usable = None if skipped or failed else preprocess.to_input(pixels)
    return ReadTile(number, usable, digest, skipped, failed, read - begin, time.perf_counter() - read)


def _why_unusable(pixels: npt.NDArray[np.generic]) -> str | None:
    if not np.issubdtype(pixels.dtype, np.floating):
        return None
    bad = int(np.count_nonzero(~np.isfinite(pixels)))
    return f"{bad} of {pixels.size} input pixels are NaN or infinite" if bad else None


def read_ahead(
    volume: Volume,
    preprocess: Preprocess,
    tiles: Iterable[tuple[int, Tile]],
    *,
    skip_empty: bool,
    ahead: int,
) -> Iterator[ReadTile]:
    """Read tiles in order while the caller works on earlier ones; at most ``ahead`` wait in memory."""
    pool = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="embedcache-read")
    waiting: deque[Future[ReadTile]] = deque()
    source = iter(tiles)
    try:
        for number, tile in source:
            waiting.append(pool.submit(read_tile, volume, preprocess, number, tile, skip_empty=skip_empty))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
