"""Turns missing tiles into ``TaskGroup`` values: shards that share source chunks, for one worker to read.

Groups share as few chunks as their size allows, since what one worker decodes is of no use to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from embedcache.encode.reading.columns import Columns, Ints, Reach, columns_of
from embedcache.encode.reading.ground import Ground
from embedcache.encode.reading.order import column_order, first_missing, image_order
from embedcache.encode.reading.route import choose_tasks
from embedcache.geometry import PLANES_PER_BLOCK
from embedcache.volume import Preprocess, Volume

MOST_TILES = 1024
"""Tiles of one group at most: what a worker that dies can lose."""

GROUPS_PER_WORKER = 4
"""At least so many groups for each worker, where shards allow, so that all end at about the same time."""


@dataclass(frozen=True)
class TaskGroup:
    """Whole shards that are read together.

    Parameters
    ----------
    shards : tuple of int
        Their numbers, in the order of reading.
    tiles : tuple of tuple of int
        The missing tiles of each, ascending.
    """

    shards: tuple[int, ...]
    tiles: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Missing tiles of the group."""
        return sum(map(len, self.tiles))


@dataclass(frozen=True)
class TaskGroups(Sequence[TaskGroup]):
    """All groups of a run, each made when it is asked for.

    Parameters
    ----------
    missing : (N,) bool
        Tiles that are going to be read.
    shard_tiles : int
        Tile numbers in one shard.
    shards : (S,) int64
        Shards with missing tiles, group by group.
    starts : (G,) int64
        Where each group starts among them.
    """

    missing: npt.NDArray[np.bool_]
    shard_tiles: int
    shards: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> TaskGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskGroup]: ...
    def __getitem__(self, index: int | slice) -> TaskGroup | Sequence[TaskGroup]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        end = self.starts[number + 1] if number + 1 < len(self) else len(self.shards)
        shards = tuple(self.shards[self.starts[number] : end].tolist())
        return TaskGroup(shards, tuple(self._members(shard) for shard in shards))

    def __iter__(self) -> Iterator[TaskGroup]:
        return (self[number] for number in range(len(self)))

    def _members(self, shard: int) -> tuple[int, ...]:
        first = shard * self.shard_tiles
        inside = np.flatnonzero(self.missing[first : first + self.shard_tiles])
        return tuple((first + inside).tolist())


def task_groups(
    volume: Volume,
    preprocess: Preprocess,
    table: Ints,
    missing: npt.NDArray[np.bool_],
    shard_tiles: int,
    *,
    memory_bytes: int,
    workers: int,
) -> TaskGroups:
    """Cut the missing tiles into groups of whole shards.

    Parameters
    ----------
    volume, preprocess, table
        What is read, and how it is cut into tiles.
    missing : (N,) bool
        Tiles to be read.
    shard_tiles : int
        Tile numbers in one shard.
    memory_bytes : int
        Decoded bytes that one worker keeps.
    workers : int
        How many there are.
    """
    firsts = first_missing(missing, shard_tiles)
    shards = np.flatnonzero(firsts >= 0)
    most = max(shard_tiles, min(MOST_TILES, int(missing.sum()) // (workers * GROUPS_PER_WORKER)))
    if not volume.uniform:
        shards = shards[image_order(table, firsts[shards])]
        parts = _images_together(table, missing, shards, shard_tiles, most)
    elif volume.pieces is None:
        parts = shards
    else:
        columns = columns_of(table)
        order, part = _columns_together(volume, preprocess, columns, firsts[shards], memory_bytes, most)
        shards, parts = shards[order], part
    if np.count_nonzero(np.diff(parts, prepend=-1)) < workers * GROUPS_PER_WORKER:
        # Workers without work are dearer than decoding a column's chunks once more.
        parts = _cut_smaller(parts, most // shard_tiles)
    starts = np.flatnonzero(np.diff(parts, prepend=-1))
    return TaskGroups(missing, shard_tiles, shards, starts)


def _columns_together(
    volume: Volume, preprocess: Preprocess, columns: Columns, firsts: Ints, memory_bytes: int, most: int
) -> tuple[Ints, Ints]:
    """The order of shards by their first tiles, and in that order the part that each belongs to."""
    assert volume.pieces is not None
    ground = Ground(columns, Reach.of(preprocess, volume.n_planes), volume.pieces).thin(memory_bytes)
    route = choose_tasks(ground, memory_bytes, max(most // columns.views, PLANES_PER_BLOCK))
    order = column_order(columns, route, firsts)
    return order, route.part(columns, columns.split(firsts[order])[0])


def _cut_smaller(parts: Ints, most_shards: int) -> Ints:
    """Parts of at most so many shards each, where those of a part follow each other."""
    places = np.arange(len(parts))
    start = np.maximum.accumulate(np.where(np.diff(parts, prepend=-1) != 0, places, 0))
    cut: Ints = np.cumsum((places - start) % most_shards == 0)
    return cut


def _images_together(
    table: Ints, missing: npt.NDArray[np.bool_], shards: Ints, shard_tiles: int, most: int
) -> Ints:
    """The part of each shard: shards follow each other in one part while they share an image."""
    images = table[:, 0]
    last_tile = np.minimum((shards + 1) * shard_tiles, len(missing)) - 1
    if table.shape[1] == 5:
        shares = images[last_tile[:-1]] == images[shards[1:] * shard_tiles]
    else:  # in the order of their first images, views of one image beside each other
        first = np.minimum(images[shards * shard_tiles], images[last_tile])
        last = np.maximum(images[shards * shard_tiles], images[last_tile])
        shares = np.maximum.accumulate(last)[:-1] >= first[1:]
    chain = np.concatenate([[0], np.cumsum(~shares)])
    return _cut_smaller(chain, most // shard_tiles)
