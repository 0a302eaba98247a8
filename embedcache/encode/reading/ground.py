"""Turns tile columns, a colour recipe and a storage grid into counts of pieces along each axis.

What a route through a volume costs follows from these few numbers; no tile is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embedcache.encode.reading.columns import Columns, Ints, Reach
from embedcache.geometry import PLANES_PER_BLOCK
from embedcache.volume.pieces import PieceGrid


@dataclass(frozen=True)
class Axis:
    """Columns along y or x, and the pieces that each of them touches.

    Parameters
    ----------
    first, last : (n,) int64
        The first and the last piece of each column.
    """

    first: Ints
    last: Ints

    @classmethod
    def of(cls, grid: PieceGrid, axis: int, starts: Ints, length: int) -> Axis:
        """Columns of a length that start at some pixels of an axis of a grid."""
        return cls(grid.index(axis, starts), grid.index(axis, starts + length - 1))

    def __len__(self) -> int:
        return len(self.first)

    def fields(self, length: int) -> Ints:
        """Pieces of each field of so many columns."""
        starts = np.arange(0, len(self), length)
        ends = np.minimum(starts + length, len(self)) - 1
        count: Ints = self.last[ends] - self.first[starts] + 1
        return count

    @property
    def widest(self) -> int:
        """Pieces of a column at most."""
        return int((self.last - self.first).max()) + 1

    @property
    def shared(self) -> int:
        """Pieces that a column and its next one share at most."""
        return int((self.last[:-1] - self.first[1:] + 1).max(initial=0))

    def cover(self) -> npt.NDArray[np.float32]:
        """Which columns need which piece, (columns, pieces) of 0 and 1."""
        pieces = np.arange(self.first.min(), self.last.max() + 1)
        covers = (self.first[:, np.newaxis] <= pieces) & (pieces <= self.last[:, np.newaxis])
        return covers.astype(np.float32)


@dataclass(frozen=True)
class Layers:
    """Layers of pieces along z, seen by steps of some plane blocks.

    Parameters
    ----------
    blocks : int
        Plane blocks of a step.
    total, in_steps : int
        Layers of all steps, each once; and of each step, added up.
    of_step, carried : int
        Layers of one step, and shared by two steps that follow each other, at most.
    at_once : int
        Layers that two readers going down one column need at a time.
    """

    blocks: int
    total: int
    in_steps: int
    of_step: int
    carried: int
    at_once: int

    @classmethod
    def of(cls, reach: Reach, grid: PieceGrid, blocks: int) -> Layers:
        """Of a grid."""
        starts = np.arange(0, reach.tile_planes, blocks * PLANES_PER_BLOCK)
        ends = np.minimum(starts + blocks * PLANES_PER_BLOCK, reach.tile_planes)
        low, high = (grid.index(0, planes) for planes in reach.planes(starts, ends))
        return cls(
            blocks,
            total=int(high.max() - low.min()) + 1,
            in_steps=int((high - low + 1).sum()),
            of_step=int((high - low).max()) + 1,
            carried=int((high[:-1] - low[1:] + 1).max(initial=0)),
            at_once=-(-reach.span // grid.kept[0]) + 2,
        )


@dataclass(frozen=True)
class Ground:
    """What a route goes through.

    Parameters
    ----------
    columns : Columns
        The tile columns.
    reach : Reach
        The planes that a tile reads.
    grid : PieceGrid
        The storage grid, and in which parts its chunks are kept.
    """

    columns: Columns
    reach: Reach
    grid: PieceGrid

    @cached_property
    def y(self) -> Axis:
        """The columns along y."""
        return Axis.of(self.grid, 1, self.columns.ys, self.columns.height)

    @cached_property
    def x(self) -> Axis:
        """The columns along x."""
        return Axis.of(self.grid, 2, self.columns.xs, self.columns.width)

    def layers(self, blocks: int) -> Layers:
        """Its layers for steps of some blocks."""
        return Layers.of(self.reach, self.grid, blocks)

    def whole(self) -> Ground:
        """With chunks kept whole."""
        return replace(self, grid=replace(self.grid, kept=self.grid.chunk))

    def thin(self, memory_bytes: int) -> Ground:
        """With chunks cut along z, where the memory is too little for those of one tile."""
        return replace(self, grid=self.grid.thin(self.y.widest * self.x.widest, memory_bytes))

    def cuts(self) -> Iterator[Ground]:
        """With chunks kept in parts across, down to about the size of a tile."""
        for height in _lengths(self.grid.chunk[1], self.columns.ys, self.columns.height):
            for width in _lengths(self.grid.chunk[2], self.columns.xs, self.columns.width):
                grid = self.grid.cut(1, height).cut(2, width)
                if grid != self.grid:
                    yield replace(self, grid=grid)


def _lengths(chunk: int, starts: Ints, tile: int) -> list[int]:
    """Lengths of parts worth trying: the whole chunk, one that ends with a tile, a half and a third."""
    stride = int(starts[1] - starts[0]) if len(starts) > 1 else tile
    growing = {stride * round(1.5**power) for power in range(32)}
    return [
        chunk,
        *sorted(length for length in {*growing, -(-chunk // 2), -(-chunk // 3)} if 1 < length < chunk),
    ]
