"""The plan says exactly what is missing and refuses a disk that is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.encode.plan import FREE_MARGIN_BYTES, plan_encode
from embedcache.encode.sizes import readable_bytes
from embedcache.errors import StorageError


def table(count: int) -> np.ndarray:
    return np.array([[number, 0, 0, 8, 8] for number in range(count)], dtype=np.int64)


@given(
    selected=st.lists(st.booleans(), min_size=1, max_size=40),
    done=st.lists(st.booleans(), max_size=40),
    shard_tiles=st.integers(1, 9),
)
def test_shards_list_every_missing_tile_once_in_its_own_shard(selected, done, shard_tiles):
    wanted = np.array(selected)
    there = np.array(done[: len(selected)], dtype=bool)
    plan = plan_encode(table(len(wanted)), wanted, there, shard_tiles)
    listed = [number for _, members in plan.shards() for number in members]
    expected = [n for n in range(len(wanted)) if wanted[n] and not (n < len(there) and there[n])]
    assert listed == expected
    assert all(number // shard_tiles == shard for shard, members in plan.shards() for number in members)
    assert plan.bytes_needed == len(expected) * plan.bytes_per_tile


def test_numbers_without_a_tile_are_not_counted():
    rows = table(4)
    rows[3] = -1
    assert plan_encode(rows, np.array([True, True, True, False]), None, 4).total == 3


def test_a_disk_that_is_too_small_is_refused_with_a_way_out():
    plan = plan_encode(table(1000), np.ones(1000, bool), None, 64)
    with pytest.raises(StorageError) as refusal:
        plan.require_space(plan.bytes_to_be_free - plan.bytes_needed * 2 // 3, "/somewhere")
    assert refusal.value.exit_code == 6
    reserve = f"{readable_bytes(plan.bytes_to_be_free - plan.bytes_needed)} in reserve"
    for word in (
        "2.0 GiB",
        reserve,
        "/somewhere",
        "Nothing was written",
        "--level",
        "--z-range",
        "--mask",
    ):
        assert word in str(refusal.value)


def test_int8_is_named_as_a_way_out_when_it_would_fit():
    plan = plan_encode(table(1000), np.ones(1000, bool), None, 64)
    replaced = plan.bytes_to_be_free - plan.bytes_needed
    for share, named in ((0.6, True), (0.3, False)):
        with pytest.raises(StorageError) as refusal:
            plan.require_space(int(replaced + share * plan.bytes_needed), "/somewhere")
        assert ("--store-dtype int8" in str(refusal.value)) is named
    halved = plan_encode(table(1000), np.ones(1000, bool), None, 64, store_dtype="int8")
    halved.require_space(int(replaced + 0.6 * plan.bytes_needed), "/somewhere")
    assert 1.9 < plan.bytes_per_tile / halved.bytes_per_tile < 2.0
    with pytest.raises(StorageError) as refusal:
        halved.require_space(int(replaced + 0.3 * plan.bytes_needed), "/somewhere")
    assert "int8" not in str(refusal.value)


def test_a_part_of_a_plan_holds_what_lies_in_its_shards():
    plan = plan_encode(table(10), np.ones(10, bool), np.arange(10) == 5, 4)
    part = plan.within(range(1, 2))
    assert np.flatnonzero(part.selected).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(part.missing).tolist() == [4, 6, 7]
    assert not plan.within(range(0)).selected.any()


def test_a_disk_that_fits_and_an_empty_plan_are_not_refused():
    plan = plan_encode(table(10), np.ones(10, bool), None, 64)
    plan.require_space(plan.bytes_to_be_free, "/somewhere")
    assert (
        plan.bytes_to_be_free >= 2 * plan.bytes_needed + FREE_MARGIN_BYTES
    )  # one shard, and its replacement
    plan_encode(table(10), np.ones(10, bool), np.ones(10, bool), 64).require_space(0, "/somewhere")


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (2 << 20, "2.0 MiB"), (3 << 40, "3.0 TiB"), (1 << 52, "4096.0 TiB")]
)
def test_bytes_are_readable(count, text):
    assert readable_bytes(count) == text
