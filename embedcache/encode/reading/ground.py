"""Turns tile columns, a colour recipe and a storage grid into counts of pieces along each axis.

What a route through a volume costs follows from these few numbers; no tile is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    def of(cls, starts: Ints, length: int, piece: int) -> Axis:
        """Columns of a length that start at some pixels, on pieces of another length."""
        return cls(starts // piece, (starts + length - 1) // piece)

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

    def cover(self, length: int) -> Ints:
        """Which columns need which piece of which field, (columns, pieces of all fields) of 0 and 1."""
        field = np.arange(len(self)) // length
        starts = np.cumsum(self.fields(length)) - self.fields(length)
        offset = starts[field] - self.first[field * length]
        pieces = np.arange(int(self.fields(length).sum()))
        first, last = (edge[:, np.newaxis] + offset[:, np.newaxis] for edge in (self.first, self.last))
        return ((first <= pieces) & (pieces <= last)).astype(np.int64)


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
    def of(cls, reach: Reach, depth: int, thickness: int, blocks: int) -> Layers:
        """Of chunks of a depth, kept in layers of a thickness."""
        starts = np.arange(0, reach.tile_planes, blocks * PLANES_PER_BLOCK)
        ends = np.minimum(starts + blocks * PLANES_PER_BLOCK, reach.tile_planes)
        low, high = (layer_of(planes, depth, thickness) for planes in reach.planes(starts, ends))
        return cls(
            blocks,
            total=int(high.max() - low.min()) + 1,
            in_steps=int((high - low + 1).sum()),
            of_step=int((high - low).max()) + 1,
            carried=int((high[:-1] - low[1:] + 1).max(initial=0)),
            at_once=-(-reach.span // thickness) + 2,
        )


def layer_of(planes: Ints, depth: int, thickness: int) -> Ints:
    """The layer of pieces that each plane lies in."""
    chunk, inside = np.divmod(planes, depth)
    layer: Ints = chunk * -(-depth // thickness) + inside // thickness
    return layer


@dataclass(frozen=True)
class Ground:
    """What a route goes through.

    Parameters
    ----------
    y, x : Axis
        The columns on the storage grid.
    grid : PieceGrid
        The storage grid.
    reach : Reach
        The planes that a tile reads.
    thickness : int
        Planes of a chunk that are kept at once.
    """

    y: Axis
    x: Axis
    grid: PieceGrid
    reach: Reach
    thickness: int

    @classmethod
    def of(cls, columns: Columns, reach: Reach, grid: PieceGrid, memory_bytes: int | None = None) -> Ground:
        """With chunks kept whole, unless the memory is too little for those of one tile."""
        y = Axis.of(columns.ys, columns.height, grid.piece[1])
        x = Axis.of(columns.xs, columns.width, grid.piece[2])
        whole = grid.piece[0]
        thickness = whole if memory_bytes is None else grid.thickness(y.widest * x.widest, memory_bytes)
        return cls(y, x, grid, reach, thickness)

    @property
    def piece_bytes(self) -> int:
        """Decoded bytes of one piece."""
        return self.thickness * self.grid.piece[1] * self.grid.piece[2] * self.grid.pixel_bytes

    def layers(self, blocks: int) -> Layers:
        """Its layers for steps of some blocks."""
        return Layers.of(self.reach, self.grid.piece[0], self.thickness, blocks)
