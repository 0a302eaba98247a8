"""Turns figures of a volume's pixels into an intensity window, by the names that scroll people know.

A normalisation is a window here: two numbers for the whole volume, found once and kept. What would give each tile
a window of its own is refused, for tiles that meet would show the same ink in two shades.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from embedcache.errors import VolumeError

NAMES = ("none", "global_zscore", "percentile_minmax", "ct")
"""What ``--window`` takes by name; all but ``none`` may end in ``:mask``."""

MASK = ":mask"
"""Ending of a name whose figures are taken inside ``--mask`` only."""

DEVIATIONS = 3.0
"""``global_zscore`` is the mean, and so many standard deviations to both sides."""

_OF_TILES = {"instance_zscore": "global_zscore", "instance_minmax": "percentile_minmax"}
_WORDS = {
    "zscore": "global_zscore",
    "z-score": "global_zscore",
    "minmax": "percentile_minmax",
    "percentile": "percentile_minmax",
}


@dataclass(frozen=True)
class Statistics:
    """Figures of all pixels of a volume that are numbers, or of those inside a mask.

    Parameters
    ----------
    count : int
        Pixels that were counted; of colour, each of the three values.
    left_out : int
        NaN and infinite ones, which are in no other figure.
    mean, std : float
        Mean and standard deviation (of the population: divided by ``count``).
    minimum, maximum : float
        The smallest and the largest value.
    p0_5, p1, p99, p99_5 : float
        Percentiles. Of integers up to 16 bits exact, of others to 2^-11 of the value.
    over : str
        ``"volume"`` or ``"mask"``.
    """

    count: int
    left_out: int
    mean: float
    std: float
    minimum: float
    maximum: float
    p0_5: float
    p1: float
    p99: float
    p99_5: float
    over: str = "volume"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """From :meth:`to_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            When a figure is missing or no number.
        """
        figures = ("mean", "std", "minimum", "maximum", "p0_5", "p1", "p99", "p99_5")
        return cls(
            count=int(values["count"]),
            left_out=int(values["left_out"]),
            **{name: float(values[name]) for name in figures},
            over=str(values["over"]),
        )


def is_named(window: str) -> bool:
    """Whether ``--window`` asks for figures of the whole volume, or of what lies inside the mask."""
    return window.removesuffix(MASK) in NAMES[1:]


def inside_mask(window: str) -> bool:
    """Whether a named window takes its figures inside ``--mask`` only."""
    return window.endswith(MASK)


def window_of(name: str, statistics: Statistics) -> tuple[float, float]:
    """The intensities that become 0 and 255.

    Parameters
    ----------
    name : str
        One of :data:`NAMES` but ``none``, with or without ``:mask``.
    statistics : Statistics
        Of the volume.

    Raises
    ------
    VolumeError
        When all pixels have one value.
    """
    low, high = _edges(name.removesuffix(MASK), statistics)
    if low == high:
        # Nearly all of one value, as around a small object: the whole range still tells it apart.
        low, high = statistics.minimum, statistics.maximum
    if low == high:
        where = " inside --mask" if statistics.over == "mask" else ""
        raise VolumeError(
            f"--window {name}: all {statistics.count:,} pixels{where} are {low:g}; one value makes no window.",
            hint="Give it as --window MIN:MAX.",
        )
    return low, high


def _edges(name: str, statistics: Statistics) -> tuple[float, float]:
    if name == "global_zscore":
        reach = DEVIATIONS * statistics.std
        return statistics.mean - reach, statistics.mean + reach
    if name == "percentile_minmax":
        return statistics.p1, statistics.p99
    if name == "ct":
        return statistics.p0_5, statistics.p99_5
    raise ValueError(f"{name} is no normalisation")


def nearest_fixed(window: str) -> str | None:
    """The normalisation of the whole volume that is nearest to one of each tile; None for all other texts."""
    return _OF_TILES.get(window.removesuffix(MASK))


def refuse_instance(window: str, edges: tuple[float, float] | None) -> NoReturn:
    """Refuse a normalisation of each tile by itself.

    Parameters
    ----------
    window : str
        As it was asked for.
    edges : tuple of float or None
        What the nearest fixed window is by a sample of the volume, as far as that has one.

    Raises
    ------
    VolumeError
        Always, with the reason, and the nearest window that is fixed.
    """
    nearest = nearest_fixed(window)
    what = "mean and deviation" if nearest == "global_zscore" else "minimum and maximum"
    sampled = "" if edges is None else f" (of a sample of this volume {edges[0]:g}:{edges[1]:g})"
    raise VolumeError(
        f"--window {window}: {what} of each tile would differ from its neighbour's, so the same ink would look "
        "different on both sides of a seam, and no decoder could tell.",
        hint=f"The nearest window that is fixed: --window {nearest}{sampled}.",
    )


def refuse_unknown(window: str) -> NoReturn:
    """Refuse a text that is no window, with the name that was probably meant.

    Raises
    ------
    VolumeError
        Always.
    """
    ending = MASK if window.endswith(MASK) else ""
    word = window.strip().lower().removesuffix(MASK)
    near = [_WORDS[word]] if word in _WORDS else get_close_matches(word, (*NAMES, "dtype"), 1)
    meant = f"; did you mean {near[0]}{ending if near[0] not in ('none', 'dtype') else ''}?" if near else "."
    raise VolumeError(
        f"--window {window}: expected dtype, MIN:MAX, p1:p99, none, global_zscore, percentile_minmax or ct{meant}",
        hint="The smaller number comes first; percentiles lie between p0 and p100.",
    )
