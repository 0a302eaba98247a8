"""The images of a batch: what fits beside what else a step needs, and never nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.train.stepping.batch_size import MOST, SHARE, largest_batch

MIB = 2**20


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2000), st.integers(1, 4000), st.integers(0, 200_000))
def test_the_largest_power_of_two_that_fits(fixed: int, each: int, free: int) -> None:
    size = largest_batch((fixed + each) * MIB, (fixed + 2 * each) * MIB, free * MIB)
    assert size == 2 ** (size.bit_length() - 1)
    assert 1 <= size <= MOST
    if size > 1:
        assert fixed + size * each <= SHARE * free + 1
    if size < MOST:
        assert fixed + 2 * size * each > SHARE * free - 1


def test_equal_needs_do_not_divide_by_nothing() -> None:
    assert largest_batch(5, 5, 10**12) == MOST
