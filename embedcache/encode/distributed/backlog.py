"""Turns the missing tiles of a plan into tasks, and lost tasks into new ones; pure.

A *group* is a few whole shards that share source chunks. A task is some groups one after the other: many at
first, so that a worker's pipeline rarely runs empty, single ones towards the end, so that all end together. A
group that was under work when its worker died is tried again alone, and given up after :data:`DEATHS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

DEATHS = 3
"""So many workers a group may kill before it is given up."""

TASK_TILES = 1024
"""A task is ended before it would grow beyond so many tiles."""

SHARES = 4
"""A task holds at most one of so many equal shares of what is left for a worker."""


@dataclass(frozen=True)
class Group:
    """Missing tiles of shards that share source chunks, ascending.

    Parameters
    ----------
    numbers : tuple of int
        Tile numbers.
    deaths : int
        Workers that died while they worked on it.
    """

    numbers: tuple[int, ...]
    deaths: int = 0

    def without(self, done: set[int]) -> Group | None:
        """What is left of it; None when nothing is."""
        left = tuple(number for number in self.numbers if number not in done)
        return Group(left, self.deaths) if left else None


class Backlog:
    """The groups that no worker has."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups = deque(groups)

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, workers: int) -> tuple[Group, ...]:
        """The next task: one group that has killed, or several that have not; empty when none is left."""
        left = sum(len(group.numbers) for group in self._groups)
        limit = min(TASK_TILES, left // (SHARES * max(workers, 1)))
        task: list[Group] = []
        tiles = 0
        while self._groups:
            group = self._groups[0]
            if task and (group.deaths or tiles + len(group.numbers) > limit):
                break
            task.append(self._groups.popleft())
            tiles += len(group.numbers)
            if group.deaths:
                break
        return tuple(task)

    def give_back(self, groups: Iterable[Group], done: set[int]) -> None:
        """What of some groups is not done is to be done next."""
        left = [rest for group in groups if (rest := group.without(done)) is not None]
        self._groups.extendleft(reversed(left))

    def lost(self, groups: Iterable[Group], done: set[int], *, begun: bool) -> Group | None:
        """A worker died with these groups; returns the one that is given up, if it was its last chance.

        The first that is not done was under work, if the worker had ``begun``; the others may be innocent.
        """
        left = [rest for group in groups if (rest := group.without(done)) is not None]
        given_up = None
        if begun and left:
            left[0] = Group(left[0].numbers, left[0].deaths + 1)
            if left[0].deaths >= DEATHS:
                given_up = left.pop(0)
        self._groups.extendleft(reversed(left))
        return given_up
