"""The average of weights: the formula, nothing from bad steps, and weights that come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from embedcache.train.stepping.averaging import Average

GOOD, BAD = torch.tensor(True), torch.tensor(False)


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_it_is_the_formula_with_a_decay_that_ramps_up() -> None:
    linear = model()
    average = Average(linear, 0.5)
    expected = {name: weight.detach().double() for name, weight in linear.named_parameters()}
    for step in range(12):
        with torch.no_grad():
            for weight in linear.parameters():
                weight.add_(step + 1.0)
        average.update(step, GOOD)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, weight in linear.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    for name, found in average.weights().items():
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_a_step_that_did_not_count_leaves_it_alone() -> None:
    linear = model()
    average = Average(linear, 0.9)
    with torch.no_grad():
        linear.weight.add_(1.0)
    before = {name: tensor.clone() for name, tensor in average.weights().items()}
    average.update(3, BAD)
    assert all(torch.equal(before[name], tensor) for name, tensor in average.weights().items())


def test_swapped_shows_the_average_and_gives_the_weights_back() -> None:
    linear = model()
    average = Average(linear, 0.9)
    with torch.no_grad():
        linear.weight.add_(1.0)
    kept = linear.weight.detach().clone()
    with average.swapped():
        assert torch.equal(linear.weight, average.weights()["weight"])
        assert not torch.equal(linear.weight, kept)
    assert torch.equal(linear.weight, kept)


def test_weights_that_do_not_learn_are_not_averaged_and_other_weights_are_refused() -> None:
    linear = model()
    linear.bias.requires_grad_(False)
    average = Average(linear, 0.9)
    assert set(average.weights()) == {"weight"}
    with pytest.raises(ValueError, match="other weights"):
        average.load({"weight": torch.zeros(2, 2)})
