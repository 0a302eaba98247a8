"""Tasks: every tile is given out once, again when its worker died, and what kills is given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedcache.encode.distributed.backlog import DEATHS, TASK_TILES, Backlog, Group
from embedcache.encode.distributed.onward import Onward
from embedcache.progress import Silent

GROUPS = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=4), min_size=1, max_size=30)


def groups_of(sizes: list[list[int]]) -> list[Group]:
    """Groups of shards of so many tiles, numbered through."""
    groups, first = [], 0
    for shards in sizes:
        made = []
        for size in shards:
            made.append(tuple(range(first, first + size)))
            first += size
        groups.append(Group(tuple(made)))
    return groups


def backlog_of(groups: list[Group]) -> Backlog:
    return Backlog(iter(groups), sum(map(len, groups)))


@given(GROUPS, st.integers(1, 8))
def test_every_group_is_given_out_once_and_tasks_grow_smaller_towards_the_end(sizes, workers):
    groups = groups_of(sizes)
    backlog, tasks = backlog_of(groups), []
    while task := backlog.take(workers):
        tasks.append(task)
    assert [group for task in tasks for group in task] == groups
    left = sum(map(len, groups))
    for task in tasks:
        tiles = sum(map(len, task))
        assert len(task) == 1 or tiles <= min(TASK_TILES, left / (4 * workers))
        left -= tiles


@given(GROUPS, st.integers(1, 3), st.data())
def test_whatever_dies_all_but_the_deadly_shards_are_done_and_each_of_these_kills_three(sizes, workers, data):
    groups = groups_of(sizes)
    shards = [shard for group in groups for shard in group.shards]
    deadly = set(data.draw(st.lists(st.sampled_from(shards), max_size=3)))
    backlog, done, given_up, deaths = backlog_of(groups), set(), [], 0
    while task := backlog.take(workers):
        for shard in (shard for group in task for shard in group.shards):
            if shard in deadly:
                deaths += 1
                lost = backlog.lost(task, done)
                if lost is not None:
                    given_up.append(lost.shards[0])
                    done.update(lost.numbers)
                break
            done.update(shard)
    assert sorted(given_up) == sorted(deadly)
    assert deaths == DEATHS * len(deadly)
    assert done == {number for shard in shards for number in shard}


def test_deaths_of_a_shard_that_makes_progress_are_not_added_up():
    backlog, done = backlog_of([Group(((0, 1, 2, 3, 4, 5),))]), set()
    for number in range(5):
        task = backlog.take(1)
        done.add(number)  # committed in part before the worker died
        assert backlog.lost(task, done) is None
    assert [group.numbers for group in backlog.take(1)] == [(5,)]


def test_groups_are_made_only_when_they_are_given_out():
    made = []

    def groups():
        for number in range(1000):
            made.append(number)
            yield Group(((number,),))

    backlog = Backlog(groups(), 1000)
    assert backlog
    first = backlog.take(1)
    assert 0 < len(first) < 1000
    assert len(made) <= len(first) + 1


@given(st.lists(st.integers(-5, 9), max_size=50))
def test_progress_only_goes_forward_and_ends_where_the_steps_do(steps):
    class Counts(Silent):
        done = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            assert steps > 0
            self.done += steps

    counts = Counts()
    onward = Onward(counts)
    highest = 0
    for at in range(len(steps)):
        onward.advance(steps[at])
        highest = max(highest, sum(steps[: at + 1]))
        assert counts.done == highest
