"""Turns a tile's targets and weights into slightly other ones, drawn anew each epoch; nothing is encoded for it.

Labels are drawn by hand, and their edge could as well lie half a cell elsewhere; and a decoder that always answers
for whole tiles learns where in a tile things tend to lie.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CUTS = (0.4, 0.6)
"""Between these the share of a cell is drawn that makes it an object's; without jitter it is one half."""

WINDOW_CHANCE = 0.5
SMALLEST_WINDOW = 0.5
"""A window's least share of the tile's content."""


def draw_cut(rng: np.random.Generator) -> float:
    """The share of a cell that makes it an object's: label edges move by at most a tenth of a cell's area."""
    return float(rng.uniform(*CUTS))


def jitter_window(
    weight: npt.NDArray[np.uint8], rng: np.random.Generator, keep: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Weights of which, in half of the draws, only those in a random rectangle count: a crop without encoding.

    Parameters
    ----------
    weight : uint8 (256, 256)
        0 or 1; the cells that count may have any shape.
    rng : Generator
        Five numbers are drawn, whatever comes of them.
    keep : uint8 (256, 256), optional
        1 in cells that the rectangle is made to hold: objects that a prompt points to are never cut.

    Returns
    -------
    uint8 (256, 256)
        Never empty where ``weight`` is not: a rectangle without any weight leaves it as it was.
    """
    coin, area, shape, down, across = rng.random(5)
    rows, columns = np.flatnonzero(weight.any(axis=1)), np.flatnonzero(weight.any(axis=0))
    if coin >= WINDOW_CHANCE or len(rows) == 0:
        return weight
    share = SMALLEST_WINDOW + (1 - SMALLEST_WINDOW) * area
    width_share = share**shape  # from the whole width to the whole height
    high = _span(rows[0], rows[-1] + 1, share / width_share, down, _ends(keep, 1))
    wide = _span(columns[0], columns[-1] + 1, width_share, across, _ends(keep, 0))
    window = np.zeros_like(weight)
    window[high, wide] = weight[high, wide]
    return window if window.any() else weight


def _ends(keep: npt.NDArray[np.uint8] | None, axis: int) -> tuple[int, int] | None:
    """First and last place of what is kept, along the other axis."""
    if keep is None or not keep.any():
        return None
    places = np.flatnonzero(keep.any(axis=axis))
    return int(places[0]), int(places[-1])


def _span(first: int, end: int, share: float, place: float, keep: tuple[int, int] | None) -> slice:
    """A share of a span, rounded up, at a place between its ends (0 to 1), and as much more as holds ``keep``."""
    length = min(end - first, int(np.ceil((end - first) * min(1.0, share))))
    start = first + int(place * (end - first - length + 1))
    stop = start + length
    return slice(start, stop) if keep is None else slice(min(start, keep[0]), max(stop, keep[1] + 1))
