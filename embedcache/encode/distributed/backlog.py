"""Turns the missing tiles of a plan into tasks, and lost tasks into new ones; pure.

A *group* is some whole shards that share source chunks. A task is one group, or several small ones: many at first,
that a worker's pipeline rarely runs empty, single ones towards the end, that all end together. A group that was
under work when its worker died is tried again shard by shard; one shard is given up after :data:`DEATHS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice

DEATHS = 3
"""So many workers a shard may kill before it is given up."""

TASK_TILES = 8192
"""A task is ended before it would grow beyond so many tiles. What it costs beside its tiles is shared by them."""

SHARES = 4
"""A task of several groups holds at most one of so many equal shares of what is left for a worker."""


@dataclass(frozen=True)
class Group:
    """Missing tiles of shards that share source chunks.

    Parameters
    ----------
    shards : tuple of tuple of int
        Tile numbers, shard by shard.
    deaths : int
        Workers that died while they worked on it and nothing of it was committed.
    """

    shards: tuple[tuple[int, ...], ...]
    deaths: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """All tile numbers."""
        return tuple(number for shard in self.shards for number in shard)

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def without(self, done: Set[int]) -> Group | None:
        """What is left of it; None when nothing is."""
        left = (tuple(number for number in shard if number not in done) for shard in self.shards)
        shards = tuple(shard for shard in left if shard)
        if not shards:
            return None
        return Group(shards, self.deaths if shards == self.shards else 0)


class Backlog:
    """The groups that no worker has.

    Parameters
    ----------
    groups : iterator of Group
        Asked for a group only when it is given out: there may be a hundred million tiles.
    tiles : int
        Tiles of all of them.
    """

    def __init__(self, groups: Iterator[Group], tiles: int) -> None:
        self._later, self._tiles = groups, tiles
        self._next: deque[Group] = deque()

    def __bool__(self) -> bool:
        return self._first() is not None

    def take(self, workers: int) -> tuple[Group, ...]:
        """The next task: one group that has killed, or several that have not; empty when none is left."""
        limit = min(TASK_TILES, self._tiles // (SHARES * max(workers, 1)))
        task: list[Group] = []
        tiles = 0
        while (group := self._first()) is not None:
            if task and (group.deaths or tiles + len(group) > limit):
                break
            task.append(self._next.popleft())
            tiles += len(group)
            if group.deaths:
                break
        self._tiles -= tiles
        return tuple(task)

    def give_back(self, groups: Iterable[Group], done: Set[int]) -> None:
        """What of some groups is not done is to be done next."""
        self._put_first([rest for group in groups if (rest := group.without(done)) is not None])

    def lost(self, groups: Iterable[Group], done: Set[int]) -> Group | None:
        """A worker died at work on these groups; returns the shard that is given up, if it was its last chance.

        The first shard that is not done was under work; as tiles are read ahead, it may have been the next one,
        which then kills the next worker.
        """
        left = [
            Group((shard,), rest.deaths if len(rest.shards) == 1 else 0)
            for group in groups
            if (rest := group.without(done)) is not None
            for shard in rest.shards
        ]
        given_up = None
        if left:
            left[0] = Group(left[0].shards, left[0].deaths + 1)
            if left[0].deaths >= DEATHS:
                given_up = left.pop(0)
        self._put_first(left)
        return given_up

    def _first(self) -> Group | None:
        if not self._next:
            self._next.extend(islice(self._later, 1))
        return self._next[0] if self._next else None

    def _put_first(self, groups: list[Group]) -> None:
        self._next.extendleft(reversed(groups))
        self._tiles += sum(map(len, groups))
