"""Turns probabilities and truth into figures at every threshold of a ladder, in one pass, and says which is best.

A threshold that was chosen on some pixels flatters the figure on the same pixels: choose on validation, report on
what was not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError
from embedcache.train.asking.metrics import Figures, figures

Ints = npt.NDArray[np.int64]

LADDER = "0.05:0.95:0.05"
"""What is tried by default: both ends are among it."""

MOST_THRESHOLDS = 1000

_ROWS_PIXELS = 1 << 22


def read_thresholds(text: str | Sequence[float]) -> tuple[float, ...]:
    """Rising probabilities from ``A:B:STEP``, ends included, or from numbers.

    Raises
    ------
    ConfigError
        When it is neither, one lies outside 0 to 1, or there are more than 1,000.
    """
    numbers = _ladder(text) if isinstance(text, str) else [float(number) for number in text]
    wrong = next((number for number in numbers if not 0.0 <= number <= 1.0), None)
    if wrong is not None:
        raise ConfigError(f"--thresholds {text}: {wrong:g} is no probability between 0 and 1.")
    if not 1 <= len(numbers) <= MOST_THRESHOLDS:
        raise ConfigError(f"--thresholds {text}: these are {len(numbers)}; 1 to {MOST_THRESHOLDS} are tried.")
    return tuple(sorted(set(numbers)))


def _ladder(text: str) -> list[float]:
    try:
        first, last, step = (float(word) for word in text.split(":"))
    except ValueError:
        raise ConfigError(f"--thresholds {text!r}: expected is A:B:STEP, as {LADDER}.") from None
    if not (math.isfinite(first) and math.isfinite(last) and 0 < step < math.inf and first <= last):
        raise ConfigError(f"--thresholds {text!r}: A must not be above B, and STEP above 0, as {LADDER}.")
    count = min((last - first) / step + 1e-6, 10 * MOST_THRESHOLDS)
    return [round(first + step * number, 9) for number in range(int(count) + 1)]


class ProbabilityCounts:
    """Pixels of truth and of background between the thresholds, gathered plane by plane.

    Parameters
    ----------
    thresholds : sequence of float
        Probabilities; a pixel above one is foreground.
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = tuple(sorted(set(thresholds)))
        # float32 as the probabilities are: equal counts to comparing them with the number itself
        self._edges = np.array(self.thresholds, dtype=np.float32)
        self.counted: Ints = np.zeros((2, len(self.thresholds) + 1), np.int64)

    def add(
        self,
        plane: npt.NDArray[np.float32],
        truth: npt.NDArray[np.bool_],
        counted: npt.NDArray[np.bool_],
    ) -> None:
        """Count one plane.

        Parameters
        ----------
        plane : ndarray of float32, (height, width)
            Probabilities; NaN (not predicted) is background at every threshold.
        truth, counted : ndarray of bool, (height, width)
            Pixels that do not count are passed over.
        """
        step = max(1, _ROWS_PIXELS // plane.shape[1])
        length = len(self._edges) + 1
        for first in range(0, len(plane), step):
            rows = slice(first, first + step)
            here = counted[rows]
            values, wanted = plane[rows][here], truth[rows][here]
            bins = np.searchsorted(self._edges, np.where(np.isnan(values), np.float32(-1), values))
            self.counted[0] += np.bincount(bins[wanted], minlength=length)
            self.counted[1] += np.bincount(bins[~wanted], minlength=length)

    def at(self, threshold: float) -> Figures:
        """Figures at one of the thresholds; its ``threshold`` is the probability."""
        place = self.thresholds.index(threshold) + 1
        tp, fp = self.counted[:, place:].sum(axis=1)
        return figures(int(tp), int(fp), int(self.counted[0].sum() - tp), threshold)


def joined(counts: Sequence[ProbabilityCounts]) -> ProbabilityCounts:
    """What was counted in several places, at the same thresholds, as one."""
    one = ProbabilityCounts(counts[0].thresholds)
    if any(other.thresholds != one.thresholds for other in counts):
        raise ValueError("counts at other thresholds cannot be added")
    one.counted = np.sum([other.counted for other in counts], axis=0)
    return one


@dataclass(frozen=True)
class Sweep:
    """Figures at every threshold of a ladder.

    Parameters
    ----------
    rows : tuple of Figures
        In order; ``threshold`` is a probability.
    best : Figures
        The row with the best figure; among equals the one nearest to 0.5.
    metric : str
        Which figure that is.
    """

    rows: tuple[Figures, ...]
    best: Figures
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "metric": self.metric,
            "best": self.best.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }


def sweep_of(counts: ProbabilityCounts, ladder: Sequence[float], metric: str = "f05") -> Sweep:
    """Figures at the thresholds of a ladder, all of which were counted."""
    rows = tuple(counts.at(threshold) for threshold in ladder)
    best = max(rows, key=lambda row: (getattr(row, metric), -abs(row.threshold - 0.5)))
    return Sweep(rows, best, metric)


def sweep_note(split: str) -> str:
    """What may be done with a threshold that was chosen on a part of the tiles."""
    if split == "val":
        return "chosen on validation: report what it gives on data that nothing was chosen on"
    return (
        f"the tiles of {split!r} are not validation tiles: a figure at a threshold chosen here must not be "
        "reported as a result"
    )
