"""Turns missing tiles and the source's storage grid into a ``Reading``: which when, each piece until when.

The order is chosen by ``route``; here it is applied to the shards that hold missing tiles. Whatever the order, the
bytes of a store are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from embedcache.encode.reading.columns import Columns, Ints, Reach, columns_of
from embedcache.encode.reading.ground import Ground
from embedcache.encode.reading.route import Route, choose_route
from embedcache.geometry import PLANES_PER_BLOCK
from embedcache.volume import Preprocess, Volume
from embedcache.volume.pieces import Piece, PieceGrid

Bools = npt.NDArray[np.bool_]


class Readers(Protocol):
    """Knows which tiles read a piece of the source."""

    def tiles(self, piece: Piece) -> tuple[Ints, Ints]:
        """Tile numbers, and how often each of them reads the piece."""


@dataclass(frozen=True)
class ColumnReaders:
    """Of a uniform volume.

    Parameters
    ----------
    columns : Columns
        Of its tile table.
    reach : Reach
        Of its colour recipe.
    """

    columns: Columns
    reach: Reach

    def tiles(self, piece: Piece) -> tuple[Ints, Ints]:
        """See :class:`Readers`."""
        planes, reads = self.reach.readers(piece.z0, piece.z1)
        rows = np.arange(len(self.columns.ys))[self.columns.reached(0, piece.y0, piece.y1)]
        places = np.arange(len(self.columns.xs))[self.columns.reached(1, piece.x0, piece.x1)]
        columns = (rows[:, np.newaxis] * len(self.columns.xs) + places).reshape(1, -1)
        blocks, inside = np.divmod(planes[:, np.newaxis], PLANES_PER_BLOCK)
        numbers = (blocks * self.columns.count + columns) * PLANES_PER_BLOCK + inside
        views = np.arange(self.columns.views)[:, np.newaxis] * self.columns.numbers
        all_views = (views + numbers.reshape(1, -1)).reshape(-1)
        return all_views, np.tile(np.repeat(reads, columns.size), self.columns.views)


@dataclass(frozen=True)
class ImageReaders:
    """Of a collection, whose tiles are numbered image by image.

    Parameters
    ----------
    images : (N,) int64
        The image of each tile; ascending where there are no views.
    """

    images: Ints

    def tiles(self, piece: Piece) -> tuple[Ints, Ints]:
        """See :class:`Readers`."""
        order, images = self._in_order
        first, end = np.searchsorted(images, [piece.z0, piece.z1])
        return order[first:end], np.ones(end - first, np.int64)

    @cached_property
    def _in_order(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.images, kind="stable")
        return order, self.images[order]


@dataclass(frozen=True)
class Reading:
    """The shards with missing tiles in the order in which they are read, and the uses of each piece on the way.

    Iterating gives each shard and the numbers of its missing tiles. It is a ``ReadPlan`` for ``Volume.expect``.

    Parameters
    ----------
    missing : (N,) bool
        Tiles that are going to be read.
    shard_tiles : int
        Tile numbers in one shard.
    shards : (S,) int64
        Shard numbers in the order of reading.
    places : (all shards,) int64
        The place of each shard in that order, −1 for none.
    readers : Readers
        Who reads a piece.
    ground : Ground or None
        The storage grid under the tiles; None where nothing is decoded, and for images.
    route : Route or None
        The way through it.
    """

    missing: Bools
    shard_tiles: int
    shards: Ints
    places: Ints
    readers: Readers
    ground: Ground | None = None
    route: Route | None = None

    @property
    def grid(self) -> PieceGrid | None:
        """In which parts chunks are kept; see ``ReadPlan``."""
        return None if self.ground is None else self.ground.grid

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for shard in self.shards.tolist():
            yield shard, self.members(shard).tolist()

    def numbers(self) -> Iterator[int]:
        """Missing tiles in the order of reading."""
        return (number for _, members in self for number in members)

    def members(self, shard: int) -> Ints:
        """Missing tiles of a shard, ascending."""
        first = shard * self.shard_tiles
        found: Ints = first + np.flatnonzero(self.missing[first : first + self.shard_tiles])
        return found

    def uses(self, piece: Piece) -> list[tuple[int, int]]:
        """Places in the order at which a piece is read, and the reads there; see ``ReadPlan``."""
        if self.grid is not None and not self.grid.has(piece):
            return []  # an earlier look at the volume kept another part of the chunk
        numbers, reads = self.readers.tiles(piece)
        read = self.missing[numbers]
        at = self.places[numbers[read] // self.shard_tiles]
        at, reads = at[at >= 0], reads[read][at >= 0]
        places, which = np.unique(at, return_inverse=True)
        sums = np.bincount(which, reads, len(places)).astype(np.int64)
        return list(zip(places.tolist(), sums.tolist(), strict=True))


def plan_reading(
    volume: Volume,
    preprocess: Preprocess,
    table: Ints,
    missing: Bools,
    shard_tiles: int,
) -> Reading:
    """The order in which the missing tiles of a volume are best read within its ``cache.limit_bytes``."""
    firsts = first_missing(missing, shard_tiles)
    shards = np.flatnonzero(firsts >= 0)
    places = np.full(len(firsts), -1, np.int64)
    if not volume.uniform:
        shards = shards[image_order(table, firsts[shards])]
        places[shards] = np.arange(len(shards))
        return Reading(missing, shard_tiles, shards, places, ImageReaders(table[:, 0]))
    columns, reach = columns_of(table), Reach.of(preprocess, volume.n_planes)
    ground = route = None
    if volume.pieces is not None:
        ground, route = choose_route(Ground(columns, reach, volume.pieces), volume.cache.limit_bytes)
        shards = shards[column_order(columns, route, firsts[shards])]
    places[shards] = np.arange(len(shards))
    return Reading(missing, shard_tiles, shards, places, ColumnReaders(columns, reach), ground, route)


def column_order(columns: Columns, route: Route, firsts: Ints) -> Ints:
    """The order in which shards are read, by their first tiles: along the route, at each place view by view."""
    bases, views = columns.split(firsts)
    order: Ints = np.lexsort((views, route.order(columns, bases)))
    return order


def image_order(table: Ints, firsts: Ints) -> Ints:
    """The order in which shards of a collection are read, by their first tiles: all views of an image together."""
    if table.shape[1] == 5:
        return np.arange(len(firsts))
    plane, y0, x0, _, _, view = table[firsts].T
    order: Ints = np.lexsort((x0, y0, view, plane))
    return order


def first_missing(missing: Bools, shard_tiles: int) -> Ints:
    """The first missing tile of every shard, −1 where none is missing."""
    whole = len(missing) // shard_tiles * shard_tiles
    grid = missing[:whole].reshape(-1, shard_tiles)
    first = np.where(grid.any(axis=1), grid.argmax(axis=1) + np.arange(len(grid)) * shard_tiles, -1)
    if whole == len(missing):
        return first
    rest = np.flatnonzero(missing[whole:])
    return np.append(first, whole + rest[0] if len(rest) else -1)
