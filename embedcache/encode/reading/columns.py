"""Turns the tile table of a uniform volume into its columns, and a colour recipe into the planes a tile reads.

The table repeats what a few numbers say: blocks of 64 planes, in each the same columns, in each the same planes.
Planning for tens of millions of tiles counts with these numbers and never walks the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embedcache.geometry import PLANES_PER_BLOCK
from embedcache.volume import Preprocess
from embedcache.volume.channels import drawn_triples

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """The tile columns of a uniform volume; column ``iy * len(xs) + ix`` starts at ``(ys[iy], xs[ix])``.

    Parameters
    ----------
    ys, xs : (ny,), (nx,) int64
        Where the columns start, ascending.
    height, width : int
        Of every tile.
    blocks : int
        Blocks of 64 planes.
    views : int
        Views that each place has; the numbers of each follow those of the one before.
    """

    ys: Ints
    xs: Ints
    height: int
    width: int
    blocks: int
    views: int = 1

    @property
    def count(self) -> int:
        """Columns of a plane."""
        return len(self.ys) * len(self.xs)

    @property
    def numbers(self) -> int:
        """Tile numbers of one view."""
        return self.blocks * self.count * PLANES_PER_BLOCK

    def split(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Base numbers of tiles, and the place of their view among the views."""
        views, bases = np.divmod(numbers, self.numbers)
        return bases, views

    def reached(self, axis: int, first: int, end: int) -> slice:
        """Rows (axis 0) or places in a row (axis 1) of columns that share pixels ``first:end``."""
        starts, length = (self.ys, self.height) if axis == 0 else (self.xs, self.width)
        low = np.searchsorted(starts + length, first, side="right")
        return slice(int(low), int(np.searchsorted(starts, end, side="left")))


def columns_of(table: Ints) -> Columns:
    """The columns of a table as ``TileGrid.table_uniform`` makes it; only one row in 64 of it is looked at."""
    tops: Ints = table[::PLANES_PER_BLOCK]
    views = len(np.unique(tops[:, 5])) if table.shape[1] > 5 else 1
    tops = tops[: len(tops) // views]
    count = int(np.searchsorted(tops[:, 0], PLANES_PER_BLOCK, side="left"))
    ys, xs = np.unique(tops[:count, 1]), np.unique(tops[:count, 2])
    if len(ys) * len(xs) != count or len(tops) % count:
        raise AssertionError(f"{count} columns are no grid of {len(ys)} × {len(xs)}")
    return Columns(ys, xs, int(table[0, 3]), int(table[0, 4]), len(tops) // count, views)


@dataclass(frozen=True)
class Reach:
    """Which planes of the source a tile reads.

    Parameters
    ----------
    n_planes : int
        Planes of the source.
    shifts : tuple of int
        Distances from the tile's own plane, clamped to the volume.
    fixed : tuple of (int, int)
        Plane ranges, ends included, that every tile reads instead (the depth recipe).
    drawn : tuple of (int, int, int)
        Planes that the tiles of each composite read instead (the random recipe).
    """

    n_planes: int
    shifts: tuple[int, ...] = (0,)
    fixed: tuple[tuple[int, int], ...] = ()
    drawn: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of(cls, preprocess: Preprocess, n_planes: int) -> Reach:
        """Of a colour recipe."""
        if preprocess.channels.startswith("adjacent:"):
            step = int(preprocess.channels.split(":")[1])
            return cls(n_planes, (-step, 0, step))
        drawn = drawn_triples(preprocess.channels, n_planes)
        return cls(n_planes, fixed=preprocess.depth_ranges, drawn=drawn)

    @cached_property
    def _drawn(self) -> Ints:
        return np.array(self.drawn, np.int64)

    @property
    def tile_planes(self) -> int:
        """Planes that have tiles."""
        return len(self.drawn) or (1 if self.fixed else self.n_planes)

    @property
    def span(self) -> int:
        """Planes between the first and the last that lie open while a column is read from top to bottom."""
        if self.drawn:
            return self.n_planes  # any plane may come again until the last composite
        if not self.fixed:
            return self.shifts[-1] - self.shifts[0]
        planes = np.concatenate([np.arange(first, last + 1) for first, last in self.fixed])
        return len(planes) - len(np.unique(planes))

    def planes(self, first: Ints, end: Ints) -> tuple[Ints, Ints]:
        """First and last source planes that tiles of planes ``first:end`` read, element by element."""
        if self.drawn:
            parts = [self._drawn[begin:stop] for begin, stop in zip(first, end, strict=True)]
            return np.array([part.min() for part in parts]), np.array([part.max() for part in parts])
        if self.fixed:
            edges = np.array(self.fixed)
            return np.full_like(first, edges.min()), np.full_like(end, edges.max())
        return np.maximum(0, first + self.shifts[0]), np.minimum(self.n_planes, end + self.shifts[-1]) - 1

    def readers(self, z0: int, z1: int) -> tuple[Ints, Ints]:
        """Tile planes, ascending, that read source planes ``z0:z1``, and how many reads each does there."""
        if self.drawn:
            times = ((self._drawn >= z0) & (self._drawn < z1)).sum(axis=1)
            reading = np.flatnonzero(times)
            return reading, times[reading]
        if self.fixed:
            reads = sum(max(0, min(z1, high + 1) - max(z0, low)) for low, high in self.fixed)
            return np.zeros(min(reads, 1), np.int64), np.full(min(reads, 1), reads, np.int64)
        # Beyond the ends of the volume a neighbour is the last plane itself.
        low = -abs(self.shifts[0]) if z0 == 0 else z0
        high = self.n_planes + abs(self.shifts[-1]) if z1 >= self.n_planes else z1
        near = [
            np.arange(max(0, low - shift), min(self.n_planes, high - shift), dtype=np.int64)
            for shift in self.shifts
        ]
        planes, times = np.unique(np.concatenate(near), return_counts=True)
        return planes, times.astype(np.int64)
