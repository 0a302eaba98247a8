"""Three masks for one point: the truth chooses which one learns, the decoder's own guess which one is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcache.sam.prompts import Prompts
from embedcache.train.asking.losses import LOSSES, compute_loss, mask_losses
from embedcache.train.asking.multimask import best_of_three, is_ambiguous, likeliest


def test_only_exactly_one_point_is_ambiguous() -> None:
    point, label = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int32)
    two = torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.int32)
    box, mask = torch.zeros(1, 4), torch.zeros(1, 1, 256, 256)
    assert is_ambiguous(Prompts((1,), point, label)).tolist() == [True]
    assert is_ambiguous(Prompts((1,))).tolist() == [False]
    assert is_ambiguous(Prompts((1,), *two)).tolist() == [False]
    assert is_ambiguous(Prompts((1,), *two, point_counts=torch.tensor([1]))).tolist() == [True]
    assert is_ambiguous(Prompts((1,), boxes=box)).tolist() == [False]
    assert is_ambiguous(Prompts((1,), point, label, boxes=box)).tolist() == [False]
    no_box = torch.tensor([False])
    assert is_ambiguous(Prompts((1,), point, label, boxes=box, has_box=no_box)).tolist() == [True]
    assert is_ambiguous(Prompts((1,), point, label, mask_input=mask)).tolist() == [False]
    assert is_ambiguous(Prompts((1,), *two, point_counts=torch.tensor([0]))).tolist() == [False]
    padded = torch.tensor([[1, -1]], dtype=torch.int32)
    assert is_ambiguous(Prompts((1,), two[0], padded, point_counts=torch.tensor([2]))).tolist() == [True]


def four(seed: int = 0, queries: int = 3, side: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, 4, side, side, generator=generator, dtype=torch.float64)
    iou = torch.rand(queries, 4, generator=generator, dtype=torch.float64)
    targets = (torch.rand(queries, side, side, generator=generator) > 0.5).double()
    weight = (torch.rand(queries, side, side, generator=generator) > 0.3).double()
    return logits, iou, targets, weight


@pytest.mark.parametrize("name", LOSSES)
def test_the_best_of_three_is_the_smallest_mask_loss_and_only_the_winner_learns(name: str) -> None:
    logits, iou, targets, weight = four()
    logits.requires_grad_(True)
    iou.requires_grad_(True)
    ambiguous = torch.tensor([True, True, False])
    found = best_of_three(name, logits, iou, targets, weight, ambiguous)
    found.total.sum().backward()
    assert logits.grad is not None
    for query in range(3):
        one = slice(query, query + 1)
        costs = [
            float(sum(mask_losses(name, logits[one, mask].detach(), targets[one], weight[one]).values()))
            for mask in range(4)
        ]
        winner = 1 + int(np.argmin(costs[1:])) if ambiguous[query] else 0
        expected = compute_loss(name, logits[one, winner], iou[one, winner], targets[one], weight[one])
        torch.testing.assert_close(found.total[one], expected.total)
        learns = [bool(logits.grad[query, mask].any()) for mask in range(4)]
        assert learns == [mask == winner for mask in range(4)]
    if name != "mse":
        assert iou.grad is not None
        assert (iou.grad != 0).sum() == 3


def test_the_gradient_of_the_best_of_three_is_that_of_finite_differences() -> None:
    logits, iou, targets, weight = four(1, queries=2, side=3)
    ambiguous = torch.tensor([True, False])

    def total(values: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        return best_of_three("sam", values, guess, targets, weight, ambiguous).total

    assert torch.autograd.gradcheck(total, (logits.requires_grad_(True), iou.requires_grad_(True)))


def test_in_use_the_decoders_own_guess_chooses() -> None:
    logits, iou, *_ = four()
    ambiguous = torch.tensor([True, False, True])
    best = likeliest(logits, iou, ambiguous)
    for query in range(3):
        mask = 1 + int(iou[query, 1:].argmax()) if ambiguous[query] else 0
        assert torch.equal(best[query], logits[query, mask])
