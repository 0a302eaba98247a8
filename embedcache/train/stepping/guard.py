"""Turns the losses and gradient norms of steps into a verdict: a training that diverges is stopped and says where.

A step whose loss or gradient is not finite never touches the weights; see :func:`is_good`. A loss that stays
finite but grows without end is seen in its means: of a few steps when it leaves all bounds, else of :data:`SPAN`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from embedcache.errors import ConfigError

SPAN = 50
"""Steps whose mean loss is compared with such means before."""

GROWTH = 10.0
"""A mean beyond so many times the best one, and beyond the first, is no training any more."""

FEW, BOUND = 10, 1e4
"""Steps whose mean loss means nothing any more beyond this: each cell would be wrong by hundreds of logits."""

NAMED = 16
"""At most so many tiles are named."""


def is_good(loss: Tensor, norm: Tensor) -> Tensor:
    """Whether a step may change the weights: bool (), on the device of loss and norm, which are () too."""
    return torch.isfinite(loss) & torch.isfinite(norm)


@dataclass
class Guard:
    """What is known of the losses so far.

    Parameters
    ----------
    total : float
        Sum of the losses of the span that is not full yet.
    count : int
        Its steps.
    first, best : float
        Mean loss of the first full span, and the least of any; infinite before the first.
    few : float
        Sum of the losses since the last :data:`FEW` steps.
    """

    total: float = 0.0
    count: int = 0
    first: float = math.inf
    best: float = math.inf
    few: float = 0.0

    def fault(self, loss: float, norm: float) -> str | None:
        """Take in a step's loss and gradient norm; what is wrong with it, in words, or None."""
        if not math.isfinite(loss):
            return "The loss is not finite"
        if not math.isfinite(norm):
            return "The gradient is not finite"
        self.total += loss
        self.few += loss
        self.count += 1
        if self.count % FEW == 0:
            mean, self.few = self.few / FEW, 0.0
            if mean > BOUND:
                return f"The mean loss of {FEW} steps is {mean:.3g}"
        if self.count < SPAN:
            return None
        mean = self.total / self.count
        self.total, self.count = 0.0, 0
        if math.isinf(self.first):
            self.first = mean
        if mean > GROWTH * self.best and mean > self.first:
            return f"The mean loss of {SPAN} steps is {mean:.3g} after {self.best:.3g} at its best"
        self.best = min(self.best, mean)
        return None

    def to_list(self) -> list[float | None]:
        """As JSON, which knows no infinity."""
        values = (self.total, self.count, self.first, self.best, self.few)
        return [value if math.isfinite(value) else None for value in values]

    @classmethod
    def from_list(cls, values: Sequence[float | None]) -> Guard:
        """Back from :meth:`to_list`."""
        if not values:
            return cls()
        total, count, first, best, few = (math.inf if value is None else float(value) for value in values)
        return cls(total, int(count), first, best, few)


def diverged(
    fault: str, *, step: int, lr: float, peak: float, tiles: Sequence[str], kept: Path | None
) -> ConfigError:
    """The error that ends a diverging training.

    Parameters
    ----------
    fault : str
        What is wrong, in words.
    step : int
        Counted from 0.
    lr, peak : float
        The learning rate at that step, and the highest of the training.
    tiles : sequence of str
        What it was asked about, store by store.
    kept : Path, optional
        The best checkpoint before, where there is one.
    """
    more = f" and {len(tiles) - NAMED} more" if len(tiles) > NAMED else ""
    return ConfigError(
        f"{fault} at step {step + 1} ({', '.join(tiles[:NAMED])}{more}), at a learning rate of {lr:.2g}. "
        + (f"The best checkpoint before it is kept: {kept}." if kept else "No checkpoint came before it."),
        hint=f"Train anew with a smaller --lr, for example {peak / 10:.2g}"
        + (f"; --init {kept} goes on from there." if kept else "."),
    )
