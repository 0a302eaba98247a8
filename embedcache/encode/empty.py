"""Turns a tile's pixels and a threshold into whether there is nothing to see, and into words that say which."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

EMPTY = "empty"
_ABOVE = re.compile(r"empty \(nothing above (\S+)\)")


def is_empty(pixels: npt.NDArray[Any], threshold: float) -> bool:
    """Whether no pixel is above a threshold, or at 0 whether all are zero; a tile with NaN is not empty."""
    if threshold == 0:
        return not np.any(pixels)
    return bool((pixels <= threshold).all())


def empty_reason(threshold: float) -> str:
    """Why a tile is skipped, as the journal keeps it."""
    return f"{EMPTY} (nothing above {threshold:.17g})" if threshold else EMPTY


def threshold_of(reason: str) -> float:
    """The threshold that a tile was skipped by; 0 where the reason names none."""
    found = _ABOVE.fullmatch(reason)
    return float(found[1]) if found else 0.0


def is_still_empty(reason: str, threshold: float) -> bool:
    """Whether a tile that was skipped for a reason is empty by another threshold too, without looking at it.

    It is where nothing was above less than that. At threshold 0 only all-zero tiles are: values below zero are not
    above it, and yet are not zero.
    """
    before = threshold_of(reason)
    return before == threshold if threshold == 0 else before <= threshold
