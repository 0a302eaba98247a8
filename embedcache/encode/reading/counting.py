"""Turns a ``Reading`` into the number of chunks it decodes, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.encode.reading.columns import Ints
from embedcache.encode.reading.ground import Ground
from embedcache.encode.reading.order import ImageReaders, Reading
from embedcache.encode.reading.route import fewest_decodes, least_memory
from embedcache.encode.sizes import readable_bytes
from embedcache.geometry import PLANES_PER_BLOCK


@dataclass(frozen=True)
class ChunkReads:
    """How often the chunks of a source are decoded.

    Parameters
    ----------
    distinct : int
        Chunks (strips, images) that hold pixels of missing tiles; 0 where nothing is decoded.
    planned : int
        Decodes that are expected; rather more than there will be.
    once_with : int
        Bytes of ``--read-memory`` with which each is decoded once; 0 where that is so already.
    """

    distinct: int
    planned: int
    once_with: int = 0

    def in_words(self) -> str:
        """One line for people."""
        if not self.distinct:
            return "The source is read directly; nothing is decoded."
        if self.planned <= self.distinct:
            return f"Each of {self.distinct:,} source chunks is decoded once."
        more = f"; once with --read-memory {readable_bytes(self.once_with)}" if self.once_with else ""
        times = self.planned / self.distinct
        return f"Each of {self.distinct:,} source chunks is decoded up to {times:.2f} times{more}."


def chunk_reads(reading: Reading) -> ChunkReads:
    """Count distinct chunks and expected decodes of a reading.

    Takes time by layers of chunks, not by tiles, and one byte per tile.
    """
    if isinstance(reading.readers, ImageReaders):
        images = np.unique(reading.readers.images[reading.missing])
        return ChunkReads(len(images), len(images))
    if reading.ground is None or reading.route is None or not len(reading):
        return ChunkReads(0, 0)
    ground, route = reading.ground, reading.route
    distinct = _pieces(reading, ground.whole())
    times = route.decodes / fewest_decodes(ground)
    return ChunkReads(distinct, round(distinct * times), least_memory(ground) if times > 1 else 0)


def _pieces(reading: Reading, ground: Ground) -> int:
    """Pieces that some missing tile reads."""
    down, right = ground.y.cover(), ground.x.cover()
    total = count = 0
    before: npt.NDArray[np.bool_] | None = None
    for needing in _columns_by_layer(reading, ground):
        if before is None or not np.array_equal(needing, before):
            grid = needing.reshape(len(ground.y), len(ground.x)).astype(np.float32)
            count, before = int(np.count_nonzero(down.T @ grid @ right)), needing
        total += count
    return total


def _columns_by_layer(reading: Reading, ground: Ground) -> Iterator[npt.NDArray[np.bool_]]:
    """For every layer of chunks, the columns with a missing tile that reads it, (columns,) bool."""
    columns = len(ground.y) * len(ground.x)
    missing = reading.missing.reshape(ground.columns.views, -1).any(axis=0)  # in whichever view
    by_plane = missing.reshape(-1, columns, PLANES_PER_BLOCK).transpose(0, 2, 1).reshape(-1, columns)
    depth = ground.grid.chunk[0]
    for z0 in range(0, ground.grid.size[0], depth):
        planes: Ints = ground.reach.readers(z0, min(z0 + depth, ground.grid.size[0]))[0]
        needing: npt.NDArray[np.bool_] = np.any(by_plane[planes], axis=0)
        yield needing
