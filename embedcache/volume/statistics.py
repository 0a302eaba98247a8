"""Turns a volume into the figures of all its pixels, or of those inside a mask, in one pass.

Chunks are taken in the order in which they are stored, each decoded once; what no mask pixel lies on is not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.progress import Progress, Silent
from embedcache.volume.mask import MaskPlanes, open_mask
from embedcache.volume.normalisation import Statistics
from embedcache.volume.tally import Counts, Moments, Tally
from embedcache.volume.volume import Volume

AT_ONCE = 1 << 20
"""Pixels that are counted at once."""

READERS = 2
"""Threads that read a volume on this machine; one at an address says itself how many requests it takes."""

Part = tuple[Counts, Counts, Moments]


@dataclass(frozen=True)
class Box:
    """Some planes of a volume, and the same crop of each."""

    z0: int
    z1: int
    y0: int
    y1: int
    x0: int
    x1: int


def gather_statistics(
    volume: Volume,
    *,
    mask: str | None = None,
    progress: Progress | None = None,
    between: Callable[[], None] = lambda: None,
) -> Statistics:
    """Read a volume once and give the figures of its pixels.

    Parameters
    ----------
    volume : Volume
        All planes of it, at the level that is open.
    mask : str, optional
        Only pixels on which this mask is positive; it may be of an integer multiple or fraction of the size.
    progress : Progress, optional
        Told of every box of chunks.
    between : callable
        Called between boxes; what it raises ends the pass.

    Raises
    ------
    VolumeError
        When a part cannot be read, the mask does not fit, or nothing is left to count.
    """
    progress, tally = progress or Silent(), Tally(volume.dtype)
    boxes = list(_boxes(volume))
    threads = _threads(volume)
    progress.start("statistics of the volume" if mask is None else "statistics inside the mask", len(boxes))
    with ExitStack() as stack:
        inside = None if mask is None else stack.enter_context(open_mask(mask, volume))
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="embedcache-statistics"))
        counting = BoundedSemaphore(READERS)
        count = partial(_count, volume, tally, inside, counting)
        for parts in _in_order(pool, boxes, count, 2 * threads):
            for part in parts:
                tally.add(*part)
            progress.advance()
            between()
    progress.finish()
    return _figures(volume, tally, mask)


def _figures(volume: Volume, tally: Tally, mask: str | None) -> Statistics:
    if tally.count:
        return tally.figures("volume" if mask is None else "mask")
    if tally.moments.left_out:
        where = volume.source if mask is None else f"{volume.source} inside --mask {mask}"
        raise VolumeError(
            f"{where}: all {tally.moments.left_out:,} pixels are NaN or infinite; no window can be taken.",
            hint="Check the volume, or give the window as --window MIN:MAX.",
        )
    raise VolumeError(
        f"--mask {mask} is positive on no pixel of {volume.source}; no window can be taken inside it.",
        hint="Check the mask, or take the statistics of the whole volume: leave out ':mask'.",
    )


def _count(
    volume: Volume, tally: Tally, mask: MaskPlanes | None, counting: BoundedSemaphore, box: Box
) -> list[Part]:
    """The pixels of a box, slab by slab; many threads may wait for chunks, few count at a time."""
    found = []
    for slab in _slabs(box):
        pixels = _pixels(volume, mask, slab)
        if pixels.size:
            with counting:
                found.append(tally.of(pixels))
    return found


def _pixels(volume: Volume, mask: MaskPlanes | None, slab: Box) -> npt.NDArray[Any]:
    """Pixels of a slab (n,), those outside the mask left out."""
    rows, columns = slice(slab.y0, slab.y1), slice(slab.x0, slab.x1)
    found = []
    for plane in range(slab.z0, slab.z1):
        wanted = None if mask is None else mask.read(plane, rows, columns)
        if wanted is not None and not wanted.any():
            continue
        crop = volume.read(plane, rows, columns)
        found.append((crop if wanted is None else crop[wanted]).ravel())
    return np.concatenate(found) if found else np.empty(0, volume.dtype)


def _in_order(
    pool: ThreadPoolExecutor, boxes: list[Box], work: Callable[[Box], list[Part]], ahead: int
) -> Iterator[list[Part]]:
    """What threads make of the boxes, in the order of the boxes, no more than so many ahead."""
    running: deque[Future[list[Part]]] = deque()
    try:
        for box in boxes:
            running.append(pool.submit(work, box))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _threads(volume: Volume) -> int:
    """As many as the source takes requests, but no more than have room for a chunk each, read and decoded."""
    most = max(READERS, int(getattr(volume, "parallel", 1)))
    if volume.pieces is None:
        return most
    return max(1, min(most, volume.cache.limit_bytes // (2 * volume.pieces.piece_bytes)))


def _boxes(volume: Volume) -> Iterator[Box]:
    """The whole volume in boxes of whole chunks, in the order of storage."""
    if not volume.uniform:
        for plane in range(volume.n_planes):
            height, width = volume.plane_size(plane)
            yield Box(plane, plane + 1, 0, height, 0, width)
        return
    height, width = volume.plane_size(0)
    depth, rows, columns = _box_shape(volume, height, width)
    for z0 in range(0, volume.n_planes, depth):
        for y0 in range(0, height, rows):
            for x0 in range(0, width, columns):
                yield Box(
                    z0,
                    min(z0 + depth, volume.n_planes),
                    y0,
                    min(y0 + rows, height),
                    x0,
                    min(x0 + columns, width),
                )


def _box_shape(volume: Volume, height: int, width: int) -> tuple[int, int, int]:
    """A chunk, or several small ones beside each other; where nothing is decoded, some rows of a plane."""
    if volume.pieces is None:
        depth = max(1, AT_ONCE // (height * width))
        return depth, max(1, AT_ONCE // width), width
    depth, rows, columns = volume.pieces.chunk
    beside = max(1, AT_ONCE // (depth * rows * columns))
    return depth, rows, min(columns * beside, width)


def _slabs(box: Box) -> Iterator[Box]:
    """A box in parts of no more pixels than are counted at once: some planes of it, else some rows of each."""
    rows, columns = box.y1 - box.y0, box.x1 - box.x0
    planes = max(1, AT_ONCE // (rows * columns))
    at_once = rows if planes > 1 else max(1, AT_ONCE // columns)
    for z0 in range(box.z0, box.z1, planes):
        for y0 in range(box.y0, box.y1, at_once):
            yield Box(z0, min(z0 + planes, box.z1), y0, min(y0 + at_once, box.y1), box.x0, box.x1)
