"""Turns pixels, handed in piece by piece, into exact counts and sums from which their figures follow.

What comes out depends on the pixels and on the order of the pieces only: not on the number of threads, nor on how
wide this machine's vector unit is, for the figures become part of a store's fingerprint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.volume.normalisation import Statistics

FLOAT_BITS = 20
"""Sign, 8 bits of exponent and 11 of mantissa: two floats that fall together differ by less than 2^-11 of them."""

_SHIFT = 32 - FLOAT_BITS
_LANES = 1024
_FEW = 1 << 16
"""Up to so many pixels, sorting them is cheaper than counting into a million bins."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Of some pixels: how many, their mean, the sum of squared distances from it, and their ends.

    Parameters
    ----------
    count, left_out : int
        Pixels counted, and those that are NaN or infinite.
    mean, squares, minimum, maximum : float
        Figures of those counted; no meaning where there is none.
    """

    count: int = 0
    left_out: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return Moments(left_out=self.left_out + other.left_out)
        apart = other.mean - self.mean
        return Moments(
            count,
            self.left_out + other.left_out,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart * apart * (self.count * (other.count / count)),
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )


class Tally:
    """Counts the values of one data type.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the pixels.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.exact = dtype.kind in "ui" and dtype.itemsize <= 2
        self._lowest = int(np.iinfo(dtype).min) if self.exact else 0
        self.bins: Counts = np.zeros(1 << (8 * dtype.itemsize if self.exact else FLOAT_BITS), np.int64)
        self.moments = Moments()

    def of(self, pixels: npt.NDArray[Any]) -> tuple[Counts, Counts, Moments]:
        """Bins, counts in them, and moments of pixels (n,); touches nothing that threads share."""
        if self.exact:
            counts = _counts_of_integers(pixels)
            found = np.flatnonzero(counts)
            return found, counts[found].astype(np.int64), Moments()
        values = pixels if pixels.dtype.kind == "f" else pixels.astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            values = values[finite]
        moments = _moments(values.astype(np.float64), pixels.size - values.size)
        return *_counted(_ordered_keys(values)), moments

    def add(self, bins: Counts, counts: Counts, moments: Moments) -> None:
        """Take in what :meth:`of` gave; in one order for the sums of floats to be the same every time."""
        self.bins[bins] += counts
        self.moments += moments

    def figures(self, over: str) -> Statistics:
        """All figures; at least one pixel must have been counted."""
        moments = self._exact_moments() if self.exact else self.moments
        cumulative = np.cumsum(self.bins)
        return Statistics(
            count=moments.count,
            left_out=moments.left_out,
            mean=moments.mean,
            std=math.sqrt(moments.squares / moments.count),
            minimum=moments.minimum,
            maximum=moments.maximum,
            **{
                name: self._percentile(cumulative, share, moments)
                for name, share in (("p0_5", 0.5), ("p1", 1), ("p99", 99), ("p99_5", 99.5))
            },
            over=over,
        )

    @property
    def count(self) -> int:
        """Pixels counted so far."""
        return int(self.bins.sum())

    def _exact_moments(self) -> Moments:
        """By whole numbers of any length: nothing is rounded but the results."""
        places = np.flatnonzero(self.bins)
        pairs = [(int(place) + self._lowest, int(self.bins[place])) for place in places]
        count = sum(times for _, times in pairs)
        total = sum(value * times for value, times in pairs)
        squares = sum(value * value * times for value, times in pairs)
        return Moments(
            count,
            0,
            float(Fraction(total, count)),
            float(Fraction(squares * count - total * total, count)),
            float(pairs[0][0]),
            float(pairs[-1][0]),
        )

    def _percentile(self, cumulative: Counts, share: float, moments: Moments) -> float:
        """Interpolated between neighbours in order, as ``numpy.percentile`` does."""
        rank = (moments.count - 1) * (share / 100)
        low, above = math.floor(rank), rank - math.floor(rank)
        first = self._value_at(cumulative, low, moments)
        second = self._value_at(cumulative, min(low + 1, moments.count - 1), moments)
        apart = second - first
        return second - apart * (1 - above) if above >= 0.5 else first + apart * above

    def _value_at(self, cumulative: Counts, rank: int, moments: Moments) -> float:
        place = int(np.searchsorted(cumulative, rank, side="right"))
        if self.exact:
            return float(place + self._lowest)
        return min(max(_float_of(place), moments.minimum), moments.maximum)


def _counts_of_integers(pixels: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """How often each value of an integer type of 8 or 16 bits occurs, from its lowest one."""
    bits = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind == "i":  # the lowest value has the sign's bit alone
        unsigned = np.dtype(f"u{pixels.dtype.itemsize}").type
        pixels = pixels.view(unsigned) ^ unsigned(1 << (bits - 1))
    if bits == 16:
        return np.bincount(pixels, minlength=1 << 16)
    even = pixels.size // 2 * 2  # two bytes at a time take half as long
    pairs = np.bincount(pixels[:even].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    counts: npt.NDArray[np.intp] = pairs.sum(axis=0) + pairs.sum(axis=1)
    counts += np.bincount(pixels[even:], minlength=256)
    return counts


def _counted(keys: npt.NDArray[np.int32]) -> tuple[Counts, Counts]:
    """The bins of floats that there are, and how often each is."""
    if keys.size > _FEW:
        counts = np.bincount(keys, minlength=1 << FLOAT_BITS)
        found = np.flatnonzero(counts)
        return found, counts[found].astype(np.int64)
    found, counts = np.unique(keys, return_counts=True)
    return found.astype(np.int64), counts.astype(np.int64)


def _ordered_keys(values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Bins of floats, ascending as the values are; the lowest bits of the mantissa are cut off."""
    largest = np.finfo(np.float32).max
    if values.dtype.itemsize > 4:
        values = np.clip(values, -largest, largest)
    cut = values.astype(np.float32).view(np.int32) >> _SHIFT  # keeps the sign
    # a negative number has all bits turned round, the larger the smaller; a positive one comes above all of these
    keys: npt.NDArray[np.int32] = cut ^ ((cut >> 31) | np.int32(1 << (FLOAT_BITS - 1)))
    return keys


def _float_of(key: int) -> float:
    """The value of a bin that lies nearest to zero: zero itself and small whole numbers come back as they are."""
    half = 1 << (FLOAT_BITS - 1)
    cut = key - half if key >= half else 2 * half - 1 - key
    return float(np.array(cut << _SHIFT, np.uint32).view(np.float32))


def _moments(values: npt.NDArray[np.float64], left_out: int) -> Moments:
    if not values.size:
        return Moments(left_out=left_out)
    mean = _sum(values) / values.size
    with np.errstate(over="ignore"):
        squares = _sum(np.square(values - mean))
    return Moments(values.size, left_out, mean, squares, float(values.min()), float(values.max()))


def _sum(values: npt.NDArray[np.float64]) -> float:
    """Row by row into 1024 sums, which are then added without rounding: the same bits on every processor."""
    whole = values.size // _LANES * _LANES
    lanes = np.add.reduce(values[:whole].reshape(-1, _LANES), axis=0)
    try:
        return math.fsum([*lanes.tolist(), *values[whole:].tolist()])
    except OverflowError:
        return math.inf
