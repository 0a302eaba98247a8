"""The order of reading: a permutation whoever reads, of few shards at a time where memory is short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import ConfigError, LabelError
from embedcache.store.reading.order import SMALLEST_WINDOW, Order, choose_order
from embedcache.train.feed.sequence import Place, TileSequence, share

SHARDS = st.lists(st.integers(0, 9), max_size=60).map(lambda ids: np.array(ids, dtype=np.int64))
WINDOWS = st.none() | st.integers(1, 12)


@given(shards=SHARDS, window=WINDOWS, seed=st.integers(0, 5), epoch=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_an_epoch_is_a_permutation_of_its_places(
    shards: np.ndarray, window: int | None, seed: int, epoch: int
) -> None:
    order = Order(seed, window)
    found = order.of_epoch(epoch, shards)
    assert sorted(found.tolist()) == list(range(len(shards)))
    again = Order.from_dict(order.to_dict())
    assert again == order
    assert np.array_equal(again.of_epoch(epoch, shards), found)


@given(shards=SHARDS, window=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_with_a_window_the_shards_of_one_are_left_before_those_of_the_next_begin(
    shards: np.ndarray, window: int
) -> None:
    read = shards[Order(0, window).of_epoch(3, shards)]
    begun: list[int] = list(dict.fromkeys(read.tolist()))
    parts: list[set[int]] = []
    for shard in read.tolist():  # cut where the window must have changed: a shard too many
        if not parts or (shard not in parts[-1] and len(parts[-1]) == window):
            parts.append(set())
        parts[-1].add(shard)
    assert sum(len(part) for part in parts) == len(begun)
    assert all(len(part) == window for part in parts[:-1])


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    shards = np.arange(200, dtype=np.int64) // 10
    for window in (None, 4):
        orders = [Order(seed, window).of_epoch(epoch, shards).tolist() for seed in (0, 1) for epoch in (0, 1)]
        assert len({tuple(order) for order in orders}) == 4


def test_tiles_of_a_window_are_mixed() -> None:
    shards = np.arange(400, dtype=np.int64) // 40
    read = shards[Order(0, 5).of_epoch(0, shards)]
    assert np.count_nonzero(np.diff(read)) > 200


@pytest.mark.parametrize("wrong", [{"seed": -1, "window": None}, {"seed": 0, "window": 0}])
def test_an_order_out_of_range_is_refused(wrong: dict[str, int | None]) -> None:
    with pytest.raises(ConfigError, match="order"):
        Order.from_dict(wrong)


def test_what_fits_into_memory_is_permuted_and_what_does_not_is_read_in_windows() -> None:
    def choose(needed: int, *, resident: bool = False, free: int = 100 << 30) -> Order:
        return choose_order(5, bytes_needed=needed, ram_free=free, shard_bytes=128 << 20, resident=resident)

    assert choose(50 << 30) == Order(5, None)
    assert choose(500 << 30, resident=True) == Order(5, None)
    assert choose(500 << 30) == Order(5, 200)
    assert choose(500 << 30).sentence().count("200 shards at a time") == 1
    assert choose(500 << 30, free=1 << 20) == Order(5, SMALLEST_WINDOW)


def sequence(order: Order, positive: list[bool], drawn: int = 0) -> TileSequence:
    count = len(positive)
    numbers = np.arange(count, dtype=np.int64)
    return TileSequence(
        numbers % 2,
        numbers * 3,
        np.array(positive),
        order,
        drawn=lambda store, base, epoch: base + drawn * epoch,
        shard=lambda stores, numbers: numbers // 6,
    )


@given(
    positive=st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
    window=WINDOWS,
    seed=st.integers(0, 3),
    start=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_a_run_that_goes_on_sees_what_it_would_have_seen(
    positive: list[bool], window: int | None, seed: int, start: int
) -> None:
    whole, later = (sequence(Order(seed, window), positive) for _ in range(2))
    seen = [whole[position] for position in range(70)]
    assert [later[position] for position in range(start, 70)] == seen[start:]
    assert [later[position] for position in range(start)] == seen[:start]
    epoch = seen[: whole.epoch_length]
    bases = [place.base // 3 for place in epoch]
    assert len(set(bases)) == len(bases)
    assert {base for base in bases if positive[base]} == set(np.flatnonzero(positive).tolist())
    assert len(bases) == min(len(positive), 2 * sum(positive))


def test_the_tile_that_is_read_is_the_one_drawn_in_that_epoch() -> None:
    found = sequence(Order(0, None), [True] * 4, drawn=100)
    assert found[9] == Place(2, found[9].store, found[9].base, found[9].base + 200)
    assert found[0].number == found[0].base


def test_tiles_without_anything_alone_teach_nothing() -> None:
    with pytest.raises(LabelError, match="No training tile holds anything"):
        sequence(Order(0, None), [False, False])


@given(batch=st.integers(1, 40), world=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_the_parts_of_all_processes_are_the_batch_in_order_and_nearly_equal(batch: int, world: int) -> None:
    if world > batch:
        with pytest.raises(ConfigError, match=f"{world} processes cannot share a batch of {batch}"):
            share(batch, 0, world)
        return
    parts = [share(batch, rank, world) for rank in range(world)]
    assert [image for part in parts for image in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2)])
def test_a_process_that_is_none_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match="counted from 0"):
        share(8, rank, world)
