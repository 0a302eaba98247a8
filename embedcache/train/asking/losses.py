"""Turns logits and targets into losses; every one is computed on logits and honours weights.

* ``sam``: 20 × focal (α 0.25, γ 2) + dice + MSE of the predicted IoU, the factors of the Segment Anything paper;
* ``bce+iou``: binary cross entropy + MSE of the predicted IoU, as in the scroll video;
* ``mse``: squared error of the sigmoid. The well-known tutorial thresholds the mask at zero first, which has no
  gradient wherever the logit is negative, so a missed pixel can never be learned; see ``docs/training.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from embedcache.errors import ConfigError

LOSSES = ("sam", "bce+iou", "mse")

FOCAL_FACTOR = 20.0
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@dataclass(frozen=True)
class LossParts:
    """A loss per query and what it is made of, each (Q,)."""

    total: Tensor
    parts: dict[str, Tensor]


def check_loss(name: str) -> str:
    """Return ``name`` when it is a known loss; raise :class:`ConfigError` otherwise."""
    if name not in LOSSES:
        raise ConfigError(f"--loss is {name!r}; it must be one of {', '.join(LOSSES)}.")
    return name


def compute_loss(
    name: str, logits: Tensor, iou_predictions: Tensor, targets: Tensor, weight: Tensor
) -> LossParts:
    """The loss of each query.

    Parameters
    ----------
    name : "sam", "bce+iou" or "mse"
    logits : (Q, 256, 256)
        Low-resolution mask logits.
    iou_predictions : (Q,)
        What the decoder believes its IoU to be.
    targets : (Q, 256, 256)
        0 or 1.
    weight : (Q, 256, 256)
        How much each cell counts; a query without any weight has loss 0.
    """
    parts = mask_losses(name, logits, targets, weight)
    if name != "mse":
        iou = mse_loss(iou_predictions, actual_iou(logits, targets, weight), reduction="none")
        parts["iou"] = iou * (weight.flatten(1).sum(dim=1) > 0)
    return LossParts(torch.stack(list(parts.values())).sum(dim=0), parts)


def mask_losses(name: str, logits: Tensor, targets: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The parts of a loss that judge the mask, each (Q,): all but the predicted IoU's."""
    if check_loss(name) == "mse":
        return {"mse": weighted_mean((logits.sigmoid() - targets) ** 2, weight)}
    if name == "bce+iou":
        return {"bce": weighted_mean(cross_entropy(logits, targets), weight)}
    return {
        "focal": FOCAL_FACTOR * weighted_mean(focal(logits, targets), weight),
        "dice": dice(logits, targets, weight),
    }


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over each query's cells by weight: (Q, H, W) to (Q,); 0 where there is no weight."""
    total = weight.flatten(1).sum(dim=1)
    return (values * weight).flatten(1).sum(dim=1) / total.clamp(min=1e-6)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each cell, stable for large logits."""
    return binary_cross_entropy_with_logits(logits, targets, reduction="none")


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of each cell (Lin et al. 2017): cross entropy, less where the answer is already right."""
    probability = logits.sigmoid()
    wrongness = probability * (1 - targets) + (1 - probability) * targets
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return alpha * wrongness**FOCAL_GAMMA * cross_entropy(logits, targets)


def dice(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Soft Dice loss of each query, with 1 added above and below so that an empty target has a gradient."""
    probability = logits.sigmoid() * weight
    wanted = targets * weight
    overlap = (probability * wanted).flatten(1).sum(dim=1)
    total = probability.flatten(1).sum(dim=1) + wanted.flatten(1).sum(dim=1)
    has_weight = weight.flatten(1).sum(dim=1) > 0
    return (1 - (2 * overlap + 1) / (total + 1)) * has_weight


def actual_iou(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """IoU of the thresholded mask and the target, (Q,), without gradient; 1 when both are empty."""
    with torch.no_grad():
        answer, wanted, counted = logits > 0, targets > 0.5, weight > 0
        overlap = (answer & wanted & counted).flatten(1).sum(dim=1).to(logits.dtype)
        union = ((answer | wanted) & counted).flatten(1).sum(dim=1).to(logits.dtype)
        return torch.where(union > 0, overlap / union.clamp(min=1), torch.ones_like(union))
