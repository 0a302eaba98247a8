"""Metrics: counted over pixels, swept over thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.train.asking.metrics import THRESHOLDS, ThresholdCounts, figures


def filled(seed: int = 0, masks: int = 3) -> tuple[ThresholdCounts, list[tuple[torch.Tensor, ...]]]:
    generator = torch.Generator().manual_seed(seed)
    counts, seen = ThresholdCounts(), []
    for _ in range(masks):
        logits = torch.randn(9, 7, generator=generator) * 3
        truth = torch.rand(9, 7, generator=generator) > 0.6
        supervised = torch.rand(9, 7, generator=generator) > 0.2
        counts.add(logits, truth, supervised)
        seen.append((logits, truth, supervised))
    return counts, seen


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_every_threshold_counts_as_comparing_pixel_by_pixel_does(seed: int) -> None:
    counts, seen = filled(seed)
    for found in counts.sweep():
        tp = fp = fn = 0
        for logits, truth, supervised in seen:
            answer = logits > found.threshold
            tp += int((answer & truth & supervised).sum())
            fp += int((answer & ~truth & supervised).sum())
            fn += int((~answer & truth & supervised).sum())
        assert found == figures(tp, fp, fn, found.threshold)


def test_the_best_threshold_has_the_best_figure() -> None:
    counts, _ = filled()
    assert counts.best("f05").f05 == max(f.f05 for f in counts.sweep())
    assert counts.best().dice >= counts.at(0.0).dice


def test_figures_are_the_textbook_ones() -> None:
    found = figures(6, 2, 4)
    assert found.precision == pytest.approx(0.75)
    assert found.recall == pytest.approx(0.6)
    assert found.iou == pytest.approx(0.5)
    assert found.dice == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert found.f05 == pytest.approx(1.25 * 0.75 * 0.6 / (0.25 * 0.75 + 0.6))


def test_nothing_wanted_and_nothing_found_is_perfect_but_a_false_alarm_is_not() -> None:
    assert figures(0, 0, 0).dice == 1.0
    assert figures(0, 5, 0).dice == 0.0
    assert figures(0, 0, 5).precision == 0.0


def test_sams_own_threshold_is_among_those_tried_and_they_rise() -> None:
    assert 0.0 in THRESHOLDS
    assert (np.diff(THRESHOLDS) > 0).all()


def test_among_equal_thresholds_the_one_nearest_to_zero_is_chosen() -> None:
    counts = ThresholdCounts()
    counts.add(torch.tensor([[9.0, -9.0]]), torch.tensor([[True, False]]), torch.ones(1, 2, dtype=torch.bool))
    assert counts.best().threshold == 0.0
