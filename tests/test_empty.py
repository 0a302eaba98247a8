"""A tile is empty by a threshold that the store keeps; a lower one takes up again what a higher one left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encode_samples import quick, shard_digests
from hypothesis import given
from hypothesis import strategies as st

from embedcache.encode.empty import empty_reason, is_empty, is_still_empty, threshold_of


@pytest.fixture
def scan(tmp_path) -> Path:
    """Planes whose brightest pixels are 0, 10, 20, …, 50."""
    values = np.zeros((6, 64, 64), np.uint8)
    for plane in range(6):
        values[plane, 5:9, 5:9] = 10 * plane
    np.save(tmp_path / "scan.npy", values)
    return tmp_path / "scan.npy"


@pytest.mark.parametrize(
    ("pixels", "threshold", "empty"),
    [
        ([0, 0], 0, True),
        ([0, 1], 0, False),
        ([-1, 0], 0, False),  # zero is no measurement; below zero is one
        ([3, 7], 7, True),
        ([3, 8], 7, False),
        ([-5, -4], -4, True),
        ([0, 0], -4, False),
        ([0.0, float("nan")], 0, False),
        ([0.0, float("nan")], 7, False),
        ([float("-inf")], 7, True),
    ],
)
def test_empty_is_nothing_above_the_threshold_and_by_default_all_zero(pixels, threshold, empty):
    assert is_empty(np.array(pixels), threshold) is empty


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_reason_says_by_which_threshold(threshold):
    assert threshold_of(empty_reason(threshold)) == threshold


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.integers(-9, 9), st.integers(-9, 9))
def test_what_is_taken_as_still_empty_is_empty(pixels, before, now):
    values = np.array(pixels)
    if is_empty(values, before) and is_still_empty(empty_reason(before), now):
        assert is_empty(values, now)


def test_other_reasons_are_those_of_older_versions():
    assert empty_reason(0) == "empty"
    assert is_still_empty("empty", 0)
    assert is_still_empty("empty", 5)
    assert not is_still_empty("empty", -5)
    assert not is_still_empty("empty (nothing above 5)", 0)


def test_tiles_with_nothing_above_the_threshold_are_skipped_with_the_reason(scan, tmp_path):
    result = quick(scan, store=tmp_path / "s.zarr", skip_empty=True, empty_threshold=20.0)
    assert (result.encoded, result.skipped) == (3, 3)
    assert result.store.skip_reasons == dict.fromkeys(range(3), "empty (nothing above 20)")


def test_a_lower_threshold_takes_up_what_a_higher_one_left_out(scan, tmp_path):
    wishes = {"store": tmp_path / "s.zarr", "skip_empty": True}
    counts = []
    for threshold in (40.0, 20.0, 30.0, 0.0):
        result = quick(scan, empty_threshold=threshold, **wishes)
        counts.append((result.encoded, int(result.store.committed.sum())))
    # a higher threshold later takes nothing away
    assert counts == [(1, 1), (2, 3), (0, 3), (2, 5)]
    assert result.store.skip_reasons == {0: "empty"}
    assert quick(scan, store=tmp_path / "s.zarr", skip_empty=False).encoded == 1
    plain = quick(scan, store=tmp_path / "plain.zarr")
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "plain.zarr")
    assert plain.store.fingerprint == result.store.fingerprint


def test_parts_leave_out_the_same_tiles_as_one_process(scan, tmp_path):
    wishes = {"skip_empty": True, "empty_threshold": 20.0}
    for part in range(2):
        quick(scan, store=tmp_path / "parts.zarr", num_parts=2, part_id=part, **wishes)
    whole = quick(scan, store=tmp_path / "whole.zarr", **wishes).store
    parts = type(whole).open(tmp_path / "parts.zarr")
    assert parts.skip_reasons == whole.skip_reasons
    assert shard_digests(parts.path) == shard_digests(whole.path)


def test_a_threshold_is_of_the_composite_that_is_encoded(scan, tmp_path):
    """Plane 2 holds nothing above 20 and its neighbour does: with the neighbours as colours it is not empty."""
    result = quick(
        scan, store=tmp_path / "s.zarr", channels="adjacent", skip_empty=True, empty_threshold=20.0
    )
    assert sorted(result.store.skip_reasons) == [0, 1]


def test_reencoding_a_changed_volume_looks_at_skipped_tiles_by_their_own_threshold(scan, tmp_path):
    wishes = {"store": tmp_path / "s.zarr", "skip_empty": True, "empty_threshold": 20.0}
    quick(scan, **wishes)
    values = np.load(scan)
    values[0, 1, 1], values[1, 1, 1] = 15, 25
    np.save(scan, values)
    renewed = quick(scan, changed="reencode", **wishes)
    assert renewed.encoded == 1
    assert sorted(renewed.store.skip_reasons) == [0, 2]
