"""Tasks: every tile is given out once, again when its worker died, and what kills is given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedcache.encode.distributed.backlog import DEATHS, TASK_TILES, Backlog, Group

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


@given(GROUPS, st.integers(1, 8))
def test_every_group_is_given_out_once_and_tasks_grow_smaller_towards_the_end(sizes, workers):
    groups = groups_of(sizes)
    backlog, tasks = Backlog(groups), []
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
    backlog, done, given_up, deaths = Backlog(groups), set(), [], 0
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
    backlog, done = Backlog([Group(((0, 1, 2, 3, 4, 5),))]), set()
    for number in range(5):
        task = backlog.take(1)
        done.add(number)  # committed in part before the worker died
        assert backlog.lost(task, done) is None
    assert [group.numbers for group in backlog.take(1)] == [(5,)]
