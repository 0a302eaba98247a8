"""Losses: on logits, weighted, with gradients where they matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import ConfigError
from embedcache.train.asking.losses import (
    LOSSES,
    actual_iou,
    compute_loss,
    cross_entropy,
    dice,
    focal,
    weighted_mean,
)


def sample(seed: int = 0, queries: int = 3, side: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, side, side, generator=generator, dtype=torch.float64)
    iou = torch.rand(queries, generator=generator, dtype=torch.float64)
    targets = (torch.rand(queries, side, side, generator=generator) > 0.5).double()
    weight = (torch.rand(queries, side, side, generator=generator) > 0.3).double()
    return logits, iou, targets, weight


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logits, iou, targets, weight = sample()
    logits.requires_grad_(True)
    iou.requires_grad_(True)

    def total(values: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        return compute_loss(name, values, guess, targets, weight).total

    assert torch.autograd.gradcheck(total, (logits, iou))


@pytest.mark.parametrize("name", LOSSES)
def test_cells_without_weight_change_nothing_and_get_no_gradient(name: str) -> None:
    logits, iou, targets, weight = sample()
    logits.requires_grad_(True)
    before = compute_loss(name, logits, iou, targets, weight).total
    other = torch.where(weight > 0, targets, 1 - targets)
    assert torch.equal(compute_loss(name, logits, iou, other, weight).total, before)
    before.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[weight == 0].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_query_without_any_weight_costs_nothing(name: str) -> None:
    logits, iou, targets, weight = sample()
    assert compute_loss(name, logits, iou, targets, torch.zeros_like(weight)).total.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", LOSSES)
def test_right_answers_cost_less_than_wrong_ones(name: str) -> None:
    _, _, targets, weight = sample()
    right, wrong = (8 * sign * (2 * targets - 1) for sign in (1, -1))
    ones = torch.ones(3, dtype=torch.float64)
    good = compute_loss(name, right, ones, targets, weight).total
    bad = compute_loss(name, wrong, ones, targets, weight).total
    assert (good < bad).all()


def test_sam_is_twenty_focal_plus_dice_plus_iou() -> None:
    logits, iou, targets, weight = sample()
    found = compute_loss("sam", logits, iou, targets, weight).total
    expected = 20 * weighted_mean(focal(logits, targets), weight) + dice(logits, targets, weight)
    expected += (iou - actual_iou(logits, targets, weight)) ** 2
    torch.testing.assert_close(found, expected)


def test_focal_is_the_published_formula() -> None:
    logits, _, targets, _ = sample()
    p = logits.sigmoid()
    p_t = torch.where(targets > 0, p, 1 - p)
    alpha_t = torch.where(targets > 0, 0.25, 0.75)
    torch.testing.assert_close(focal(logits, targets), -alpha_t * (1 - p_t) ** 2 * p_t.log())


def test_the_tutorials_thresholded_loss_cannot_learn_a_missed_pixel_but_ours_can() -> None:
    """The reason why thresholding before the loss is not copied."""
    logits = torch.tensor([[[-2.0, 3.0]]], requires_grad=True)
    targets = torch.ones(1, 1, 2)
    kept = torch.nn.functional.threshold(logits, 0.0, 0.0)
    torch.nn.functional.mse_loss(torch.nn.functional.normalize(kept), targets).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0] == 0
    logits.grad = None
    compute_loss("mse", logits, torch.ones(1), targets, torch.ones_like(targets)).total.sum().backward()
    assert logits.grad[0, 0, 0] < 0  # raising the missed pixel's logit lowers the loss


@given(st.floats(-200, 200), st.booleans())
@settings(max_examples=50, deadline=None)
def test_extreme_logits_stay_finite(value: float, inside: bool) -> None:
    logits = torch.full((1, 4, 4), value, requires_grad=True)
    targets = torch.full((1, 4, 4), float(inside))
    for name in LOSSES:
        loss = compute_loss(name, logits, torch.ones(1), targets, torch.ones(1, 4, 4)).total.sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_an_empty_target_still_pushes_logits_down() -> None:
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    dice(logits, torch.zeros(1, 4, 4), torch.ones(1, 4, 4)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_the_iou_of_two_empty_masks_is_one() -> None:
    empty = torch.zeros(1, 4, 4)
    assert actual_iou(empty - 1, empty, empty + 1).tolist() == [1.0]


def test_an_unknown_loss_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="--loss is 'l2'"):
        compute_loss("l2", *sample())


def test_cross_entropy_is_the_log_likelihood() -> None:
    logits, _, targets, _ = sample()
    p = logits.sigmoid()
    torch.testing.assert_close(cross_entropy(logits, targets), -torch.where(targets > 0, p, 1 - p).log())
