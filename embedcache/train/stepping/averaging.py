"""Turns the weights of all steps into their exponential average, which is validated and kept in their place.

The average follows quickly at first: its decay is ``min(decay, (1 + t) / (10 + t))`` at step t, so that a short
training is not held back by the weights it began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_at(step: int, decay: float) -> float:
    """How much of the average stays at a step, counted from 0."""
    return min(decay, (1 + step) / (10 + step))


class Average:
    """The average of a model's trained weights.

    Parameters
    ----------
    model : Module
        On its device; what it holds now is the first average.
    decay : float
        In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = list(trained.values())
        self._average = {name: weight.detach().clone() for name, weight in trained.items()}

    def update(self, step: int, good: Tensor) -> None:
        """Take in the weights after a step.

        Parameters
        ----------
        step : int
            Counted from 0.
        good : bool ()
            On the model's device; where it is false nothing changes, and nobody waits to learn it.
        """
        share = good.to(torch.float32) * (1.0 - decay_at(step, self.decay))
        with torch.no_grad():
            average = list(self._average.values())
            change = torch._foreach_sub(self._weights, average)
            torch._foreach_mul_(change, share)  # by a tensor: a number would have to be read from the device
            torch._foreach_add_(average, change)

    def weights(self) -> dict[str, Tensor]:
        """The average of each trained weight, by its name in the model."""
        return dict(self._average)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put saved averages back.

        Raises
        ------
        ValueError
            When they are of other weights.
        """
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in self._average.items()
        }:
            raise ValueError("its average is of other weights")
        for name, tensor in weights.items():
            self._average[name].copy_(tensor)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model with the average in place of its weights, for the block."""
        kept = [weight.detach().clone() for weight in self._weights]
        self._put(list(self._average.values()))
        try:
            yield
        finally:
            self._put(kept)

    def _put(self, tensors: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._weights, tensors)
