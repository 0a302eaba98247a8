"""Turns logits and truth into counts at many thresholds, and counts into figures.

Counts (true and false positives, false negatives) are summed over all pixels first and divided once, so that
large and small tiles weigh by what they hold. Thresholds are in logits, as SAM's ``mask_threshold``; the best
is chosen on validation and travels with the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_PROBABILITIES = np.concatenate([[0.001, 0.005, 0.01, 0.02], np.arange(1, 20) / 20, [0.98, 0.99]])

THRESHOLDS: npt.NDArray[np.float64] = np.round(np.log(_PROBABILITIES / (1 - _PROBABILITIES)), 4) + 0.0
"""Logits that are tried as thresholds: probabilities 0.001 to 0.99; 0.0 (SAM's own) is among them."""


def probability(logit: float) -> float:
    """A threshold as people give it: 0 to 1."""
    return 1.0 / (1.0 + math.exp(-logit))


@dataclass(frozen=True, slots=True)
class Figures:
    """What a mask is worth, each figure from 0 to 1.

    Parameters
    ----------
    dice, iou, f05, precision, recall : float
        F0.5 weighs precision twice as much as recall, as the ink detection contest does.
    threshold : float
        In logits; values above it are foreground.
    """

    dice: float
    iou: float
    f05: float
    precision: float
    recall: float
    threshold: float

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


def figures(tp: float, fp: float, fn: float, threshold: float = 0.0) -> Figures:
    """Figures from counts; nothing wanted and nothing found is perfect, a figure of 0/0 otherwise 0.

    F0.5 is the ink contests', ``(1 + β²) P R / (β² P + R)`` with β = 0.5: 0 without a single true positive, also
    where nothing is wanted and nothing found.
    """
    if tp + fp + fn == 0:
        return Figures(dice=1.0, iou=1.0, f05=0.0, precision=1.0, recall=1.0, threshold=threshold)
    return Figures(
        dice=2 * tp / (2 * tp + fp + fn),
        iou=tp / (tp + fp + fn),
        f05=1.25 * tp / (1.25 * tp + 0.25 * fn + fp),
        precision=tp / (tp + fp) if tp + fp else 0.0,
        recall=tp / (tp + fn) if tp + fn else 0.0,
        threshold=threshold,
    )


class ThresholdCounts:
    """Counts at each of some rising thresholds (logits; :data:`THRESHOLDS` by default), gathered tile by tile."""

    def __init__(self, thresholds: npt.NDArray[np.float64] = THRESHOLDS) -> None:
        self._thresholds = thresholds
        self._edges = torch.tensor(thresholds, dtype=torch.float32)
        self._inside = np.zeros(len(thresholds) + 1, dtype=np.int64)
        self._outside = np.zeros(len(thresholds) + 1, dtype=np.int64)

    def add(self, logits: Tensor, truth: Tensor, supervised: Tensor) -> None:
        """Count one mask.

        Parameters
        ----------
        logits : float (height, width)
            In tile px.
        truth, supervised : bool (height, width)
            Pixels that are not supervised do not count.
        """
        bins = torch.bucketize(logits[supervised].float().contiguous(), self._edges.to(logits.device))
        inside = truth[supervised]
        length = len(self._inside)
        self._inside += torch.bincount(bins[inside], minlength=length).cpu().numpy()
        self._outside += torch.bincount(bins[~inside], minlength=length).cpu().numpy()

    @property
    def tensor(self) -> Tensor:
        """All that was counted, int64 (2, n + 1); counts of several places can be summed."""
        return torch.from_numpy(np.stack([self._inside, self._outside]))

    def replace(self, counted: Tensor) -> None:
        """Take what :attr:`tensor` gave, or a sum of such, in place of what was counted."""
        self._inside, self._outside = counted.cpu().numpy().copy()

    def sweep(self) -> list[Figures]:
        """Figures at every threshold, in order."""
        tp = self._inside.sum() - np.cumsum(self._inside)[:-1]
        fp = self._outside.sum() - np.cumsum(self._outside)[:-1]
        fn = self._inside.sum() - tp
        return [
            figures(int(a), int(b), int(c), float(t))
            for a, b, c, t in zip(tp, fp, fn, self._thresholds, strict=True)
        ]

    def at(self, threshold: float) -> Figures:
        """Figures at the tried threshold nearest to ``threshold``."""
        return self.sweep()[int(np.abs(self._thresholds - threshold).argmin())]

    def best(self, metric: str = "dice") -> Figures:
        """Figures at the threshold with the best ``metric``; among equals the one nearest to 0."""
        return max(self.sweep(), key=lambda f: (getattr(f, metric), -abs(f.threshold)))
