"""The learning rate: it rises to its peak, never beyond, falls after it, and depends on the step alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.train.option_checks import SCHEDULES
from embedcache.train.stepping.schedule import default_warmup, rate

PEAK = 1e-3


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.integers(0, 120))
def test_it_rises_to_the_peak_and_never_rises_again(schedule: str, steps: int, warmup: int) -> None:
    rates = [rate(step, peak=PEAK, steps=steps, warmup=warmup, schedule=schedule) for step in range(steps)]
    assert all(0 < value <= PEAK for value in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert all(before < after for before, after in pairwise(rising))
    assert all(before >= after for before, after in pairwise(falling))
    if 0 < warmup <= steps:
        assert rates[warmup - 1] == PEAK


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.01), ("linear", 0.01), ("constant", 1.0)])
def test_where_a_course_ends(schedule: str, last: float) -> None:
    end = rate(1000, peak=PEAK, steps=1000, warmup=100, schedule=schedule)
    assert math.isclose(end, last * PEAK, rel_tol=1e-9)


def test_steps_drop_to_a_tenth_twice() -> None:
    seen = [rate(step, peak=1.0, steps=90, warmup=0, schedule="step") for step in (0, 59, 60, 79, 80, 89)]
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (5, 1), (50, 5), (999, 99), (100_000, 100)])
def test_warm_up_takes_a_tenth_at_most_a_hundred_steps(steps: int, warmup: int) -> None:
    assert default_warmup(steps) == warmup
