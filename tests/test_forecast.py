"""What a plan reckons follows from what the pieces cost; it promises no more than the slowest of them allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.encode.tile_reader import READER_THREADS
from embedcache.encode.timing.forecast import Cost, Costs, Work, break_even, forecast
from embedcache.encode.timing.reading import split

SECONDS = st.floats(0, 10)
COST = st.builds(lambda wall, more: Cost(wall, wall * more), SECONDS, st.floats(0, 4))
COSTS = st.builds(
    Costs, start=SECONDS, **dict.fromkeys(("chunk", "read", "preprocess", "fill", "encode", "write"), COST)
)
WORK = st.builds(
    Work,
    tiles=st.integers(1, 10**6),
    chunks=st.integers(0, 10**6),
    encoded=st.floats(0, 1),
    shard_tiles=st.integers(1, 256),
    first_chunks=st.integers(0, 64),
    cores=st.integers(1, 64),
    workers=st.integers(1, 16),
    ahead=st.booleans(),
)
ONE = Work(tiles=100, chunks=0, encoded=1.0, shard_tiles=64, first_chunks=0, cores=2, ahead=True)
FREE = Costs(
    start=0.0, chunk=Cost(), read=Cost(), preprocess=Cost(), fill=Cost(), encode=Cost(), write=Cost()
)


@given(costs=COSTS, work=WORK)
def test_no_run_is_promised_to_be_faster_than_its_slowest_stage_or_its_cores(costs, work):
    found = forecast(costs, work)
    assert found.per_tile * work.workers >= costs.encode.wall * work.encoded * 0.999
    assert found.per_tile * work.workers >= costs.write.wall * 0.999
    assert found.per_tile * work.cores >= (costs.encode.cpu * work.encoded + costs.write.cpu) * 0.999
    assert found.seconds >= costs.start + found.per_tile * work.tiles


@given(costs=COSTS, work=WORK)
def test_more_work_takes_longer_and_more_hands_never_do(costs, work):
    seconds = forecast(costs, work).seconds
    assert (
        forecast(costs, replace(work, tiles=work.tiles * 2, chunks=work.chunks * 2)).seconds
        >= seconds * 0.999
    )
    assert forecast(costs, replace(work, workers=work.workers + 1)).seconds <= seconds * 1.001
    assert forecast(costs, replace(work, cores=work.cores + 1)).seconds <= seconds * 1.001


@pytest.mark.parametrize(
    ("costs", "per_tile", "bottleneck"),
    [
        (replace(FREE, encode=Cost(3, 3)), 3.0, "encode"),
        (replace(FREE, encode=Cost(3, 6)), 3.0, "encode"),
        (replace(FREE, encode=Cost(3, 3), read=Cost(8, 1)), 8 / READER_THREADS, "read"),
        (replace(FREE, encode=Cost(3, 0), write=Cost(5, 0)), 5.0, "write"),
        (replace(FREE, encode=Cost(3, 0), preprocess=Cost(8, 8)), 4.0, "preprocess"),
        (replace(FREE, encode=Cost(3, 6), preprocess=Cost(1, 1)), 3.5, "encode"),
    ],
)
def test_the_pace_is_that_of_the_slowest_stage_and_of_all_cores_together(costs, per_tile, bottleneck):
    found = forecast(costs, ONE)
    assert (found.per_tile, found.bottleneck) == (pytest.approx(per_tile), bottleneck)


def test_on_a_cpu_the_encoder_waits_for_the_writer():
    found = forecast(replace(FREE, encode=Cost(3, 0), write=Cost(5, 0)), replace(ONE, ahead=False))
    assert (found.per_tile, found.bottleneck) == (pytest.approx(8.0), "write")


def test_decodes_are_shared_by_the_tiles_that_need_them():
    costs = replace(FREE, chunk=Cost(1, 1))
    shared = forecast(costs, replace(ONE, tiles=100, chunks=50, first_chunks=4))
    assert shared.per_tile == pytest.approx(0.25)
    assert shared.start == pytest.approx(4), "the first tile waits for its own"


def test_an_encoder_in_two_processes_goes_twice_as_fast_while_there_are_cores_for_it():
    costs = replace(FREE, encode=Cost(3, 3))
    assert forecast(costs, replace(ONE, workers=2)).per_tile == pytest.approx(1.5)
    assert forecast(costs, replace(ONE, workers=4)).per_tile == pytest.approx(1.5), "of two cores"


@given(
    per_chunk=st.floats(0.001, 10),
    per_tile=st.floats(0.001, 10),
    decodes=st.lists(st.integers(0, 64), min_size=2, max_size=12).filter(lambda counts: 0 in counts),
)
def test_what_a_decode_and_what_a_tile_costs_are_told_apart(per_chunk, per_tile, decodes):
    costs = [Cost(per_chunk * count + per_tile, 2 * per_chunk * count + per_tile) for count in decodes]
    chunk, tile = split(costs, decodes)
    assert (tile.wall, tile.cpu) == pytest.approx((per_tile, per_tile))
    if sum(decodes):
        assert (chunk.wall, chunk.cpu) == pytest.approx((per_chunk, 2 * per_chunk), rel=1e-3)


def test_a_cache_has_paid_after_one_epoch_and_what_its_making_cost_beside_encoding():
    found = forecast(replace(FREE, start=50.0, encode=Cost(1, 1)), ONE)
    assert break_even(found, 100) == pytest.approx(1.5)
