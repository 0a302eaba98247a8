"""Turns a step's number into its learning rate: a linear warm-up, then one of four courses. Pure."""

from __future__ import annotations

import math

LAST_SHARE = 0.01
"""Share of the peak at which ``cosine`` and ``linear`` end."""

DROPS = (2 / 3, 8 / 9)
"""Shares of all steps after which ``step`` goes on with a tenth."""

LONGEST_WARM_UP = 100


def default_warmup(steps: int) -> int:
    """Steps of warm-up when nobody says: a tenth of the training, at most 100, at least one."""
    return max(1, min(LONGEST_WARM_UP, steps // 10))


def rate(step: int, *, peak: float, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of a step.

    Parameters
    ----------
    step : int
        Counted from 0.
    peak : float
        Reached at the end of the warm-up.
    steps : int
        Of the whole training.
    warmup : int
        Steps in which the rate rises linearly.
    schedule : "cosine", "linear", "step" or "constant"
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    course = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "cosine":
        return peak * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * course)))
    if schedule == "linear":
        return peak * (1 - (1 - LAST_SHARE) * course)
    if schedule == "step":
        return peak * 0.1 ** sum(step >= share * steps for share in DROPS)
    return peak
