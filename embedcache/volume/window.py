"""Turns ``--window`` into two numbers: from the data type, from pixels at fixed places, or from all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.volume.normalisation import (
    DEVIATIONS,
    inside_mask,
    is_named,
    nearest_fixed,
    refuse_instance,
    refuse_unknown,
    window_of,
)
from embedcache.volume.statistics import gather_statistics
from embedcache.volume.volume import Volume

SAMPLES = 64
"""Crops that the sample takes from a volume."""

SAMPLE_SIDE = 128
"""Side of one crop; on a 128-grid each touches few chunks."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def resolve_window(volume: Volume, window: str | None) -> tuple[float, float]:
    """The intensities that become 0 and 255.

    Parameters
    ----------
    volume : Volume
        Read only for percentiles, and whole for a normalisation by name.
    window : str, optional
        ``"dtype"``, ``"MIN:MAX"``, ``"pA:pB"``, or a name of :mod:`embedcache.volume.normalisation`; None for the
        default of the data type.

    Raises
    ------
    VolumeError
        When the text is none of these, or the pixels have no two values apart.
    """
    text = canonical_window(window, volume)
    if text == "dtype":
        return _of_dtype(volume)
    if is_named(text):
        if inside_mask(text):
            raise mask_missing(text)
        return window_of(text, gather_statistics(volume))
    if nearest_fixed(text) is not None:
        refuse_instance(text, _nearest_of_sample(volume, text))
    percentiles = re.fullmatch(rf"p({_NUMBER}):p({_NUMBER})", text)
    if percentiles:
        return _of_sample(volume, float(percentiles[1]), float(percentiles[2]), text)
    numbers = re.fullmatch(rf"({_NUMBER}):({_NUMBER})", text)
    if numbers and float(numbers[1]) < float(numbers[2]):
        return float(numbers[1]), float(numbers[2])
    refuse_unknown(text)


def canonical_window(window: str | None, volume: Volume) -> str:
    """The one way of writing what was asked for, the default of the data type named."""
    text = window.strip().lower() if window else ("dtype" if volume.dtype == np.uint8 else "p1:p99")
    return "dtype" if text == "none" else text


def is_sampled(window: str) -> bool:
    """Whether a window is resolved from the pixels, and so frozen in a store when it is made."""
    return is_named(window) or re.match(r"p[\d.+-]", window) is not None


def mask_missing(window: str) -> VolumeError:
    """The refusal of statistics inside a mask that was not given."""
    return VolumeError(
        f"--window {window} takes its statistics inside --mask, which was not given.",
        hint=f"Give --mask FILE, or --window {window.partition(':')[0]} for the whole volume.",
    )


def _nearest_of_sample(volume: Volume, text: str) -> tuple[float, float] | None:
    """What the nearest fixed window is by a sample; None where the sample has no two values apart."""
    sample = sample_pixels(volume).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return None
    if nearest_fixed(text) == "global_zscore":
        low, high = sample.mean() - DEVIATIONS * sample.std(), sample.mean() + DEVIATIONS * sample.std()
    else:
        low, high = np.percentile(sample, [1, 99])
    return (float(low), float(high)) if low < high else None


def _of_dtype(volume: Volume) -> tuple[float, float]:
    if volume.dtype.kind == "f":
        raise VolumeError(
            f"--window dtype: {volume.source} holds {volume.dtype} pixels, which have no natural range.",
            hint="Use --window p1:p99 or --window MIN:MAX.",
        )
    limits = np.iinfo(volume.dtype)
    return float(limits.min), float(limits.max)


def _of_sample(volume: Volume, lower: float, upper: float, text: str) -> tuple[float, float]:
    if not 0 <= lower < upper <= 100:
        raise VolumeError(f"--window {text}: expected percentiles from p0 to p100, the smaller one first.")
    sample = sample_pixels(volume)
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        raise VolumeError(
            f"{volume.source}: all {sample.size} sampled pixels are NaN or infinite; no window can be taken.",
            hint="Check the volume, or give the window as --window MIN:MAX.",
        )
    low, high = (float(value) for value in np.percentile(finite.astype(np.float64), [lower, upper]))
    if low == high:
        # More than 98 % of one value, as around a small object: the whole range still tells it apart.
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise VolumeError(
            f"{volume.source}: all {finite.size} sampled pixels are {low:g}; one value makes no window.",
            hint="Give it as --window MIN:MAX.",
        )
    return low, high


def sample_places(volume: Volume) -> Iterator[tuple[int, slice, slice]]:
    """Plane, rows and columns of 64 crops, spread by a fixed low-discrepancy sequence."""
    for number in range(SAMPLES):
        fractions = [_radical_inverse(number + 1, base) for base in (2, 3, 5)]
        plane = min(int(fractions[0] * volume.n_planes), volume.n_planes - 1)
        height, width = volume.plane_size(plane)
        yield plane, _place(fractions[1], height), _place(fractions[2], width)


def sample_pixels(volume: Volume) -> npt.NDArray[Any]:
    """Pixels of the 64 crops of :func:`sample_places`, as one flat array."""
    return np.concatenate([volume.read(*place).ravel() for place in sample_places(volume)])


def clipped_share(volume: Volume, window: tuple[float, float]) -> float:
    """Share of a fixed sample's pixels that a window clips; zeros and NaN, often no measurement, not counted."""
    pixels = sample_pixels(volume)
    counted = pixels[np.isfinite(pixels) & (pixels != 0)]
    if counted.size == 0:
        return 0.0
    return float(np.mean((counted < window[0]) | (counted > window[1])))


def _place(fraction: float, size: int) -> slice:
    """A crop of at most 128 pixels, on multiples of 128 so that it does not straddle chunks."""
    slots = max(1, size // SAMPLE_SIDE)
    start = min(int(fraction * slots), slots - 1) * SAMPLE_SIDE
    return slice(start, min(start + SAMPLE_SIDE, size))


def _radical_inverse(number: int, base: int) -> float:
    """The Halton sequence: evenly spread fractions that depend on nothing but their number."""
    value, weight = 0.0, 1.0
    while number:
        weight /= base
        value += weight * (number % base)
        number //= base
    return value
