"""Turns a volume into a glance at it: a histogram and a small picture, for a bounded number of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.volume.volume import Volume
from embedcache.volume.window import sample_places

READ_LIMIT = 32 << 20
"""Decoded bytes that a histogram or a picture costs at most; one piece is always read, however large."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of one plane.

    Parameters
    ----------
    pixels : ndarray (h, w) or (h, w, 3), uint8
        The longer side is at most as long as was asked for.
    plane : int
        Of the volume that was looked at.
    level : int
        The pyramid level that it was made of.
    pieces : (int, int)
        (1, 1) is the whole plane; (n, m) are n × m parts of it, evenly spread and side by side, where reading it
        whole would have cost too much.
    """

    pixels: npt.NDArray[np.uint8]
    plane: int
    level: int
    pieces: tuple[int, int]


def histogram(volume: Volume, *, bins: int = 32, limit: int = READ_LIMIT) -> dict[str, Any]:
    """Count intensities at the places that windows are sampled from, as far as ``limit`` bytes reach.

    Parameters
    ----------
    volume : Volume
        Any; pixels that it keeps in memory already cost nothing.
    bins : int
        How many, of one width, from the smallest to the largest value.
    limit : int
        Bytes that may be decoded.

    Returns
    -------
    dict
        ``edges`` (bins + 1), ``counts`` (bins), ``zeros``, ``nan`` (NaN and infinite, not in ``counts``) and
        ``sampled_pixels``.
    """
    sample = np.concatenate([crop.ravel() for crop in _affordable(volume, limit)])
    finite = sample[np.isfinite(sample)].astype(np.float64)
    counts, edges = np.histogram(finite, bins) if finite.size else (np.zeros(bins, int), np.zeros(bins + 1))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "zeros": int(np.count_nonzero(finite == 0)),
        "nan": int(sample.size - finite.size),
        "sampled_pixels": int(sample.size),
    }


def _affordable(volume: Volume, limit: int) -> Iterator[npt.NDArray[Any]]:
    """Crops of the sample until the limit is reached; of images, decoded whole, all that cost nothing more."""
    before, planes = volume.reads, set[int]()
    for plane, rows, columns in sample_places(volume):
        if planes and (volume.reads - before).bytes >= limit and (volume.uniform or plane not in planes):
            continue
        planes.add(plane)
        yield volume.read(plane, rows, columns)


def thumbnail(
    volume: Volume,
    window: tuple[float, float],
    *,
    plane: int | None = None,
    side: int = 512,
    limit: int = READ_LIMIT,
    at_level: Callable[[int], Volume] | None = None,
) -> Thumbnail:
    """Make a small picture of one plane.

    Parameters
    ----------
    volume : Volume
        Any.
    window : (float, float)
        Intensities that become 0 and 255; NaN becomes 0.
    plane : int, optional
        By default the one in the middle.
    side : int
        Pixels of the longer side, at most.
    limit : int
        Bytes that may be decoded.
    at_level : callable, optional
        Opens another level of the same volume; the coarsest that is large enough is looked at.

    Raises
    ------
    VolumeError
        When there is no such plane, or it cannot be read.
    """
    plane = volume.n_planes // 2 if plane is None else plane
    if not 0 <= plane < volume.n_planes:
        raise VolumeError(
            f"{volume.source} has planes 0 to {volume.n_planes - 1}; there is no plane {plane}."
        )
    level = _level_for(volume, side)
    if at_level is None or level is None:
        pixels, pieces = _picture(volume, window, plane, side, limit)
        return Thumbnail(pixels, plane, volume.level, pieces)
    with at_level(level) as coarse:
        there = min(int((plane + 0.5) * coarse.n_planes / volume.n_planes), coarse.n_planes - 1)
        pixels, pieces = _picture(coarse, window, there, side, limit)
    return Thumbnail(pixels, plane, level, pieces)


def _level_for(volume: Volume, side: int) -> int | None:
    """The coarsest level whose planes are as large as the picture; None where it is the one that is open."""
    large = [
        level for level, shape in enumerate(volume.levels)
        if level > volume.level and shape and max(shape[1:]) >= side
    ]  # fmt: skip
    return large[-1] if large else None


def _picture(
    volume: Volume, window: tuple[float, float], plane: int, side: int, limit: int
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    height, width = volume.plane_size(plane)
    shrink = max(1.0, max(height, width) / side)
    out = max(1, round(height / shrink)), max(1, round(width / shrink))
    unit, cost = _unit(volume, plane)
    units = math.ceil(height / unit[0]), math.ceil(width / unit[1])
    if units[0] * units[1] * cost <= limit or units == (1, 1):
        whole = volume.read(plane, slice(0, height), slice(0, width))
        return _fitted(whole, window, out), (1, 1)
    taken = _spread(units, out, max(1, limit // cost))
    rows = [
        np.concatenate([
            _fitted(_part(volume, plane, unit, y, x), window, cell)
            for x, cell in ((x, (high, wide)) for x, wide in _cells(units[1], taken[1], out[1]))
        ], axis=1)
        for y, high in _cells(units[0], taken[0], out[0])
    ]  # fmt: skip
    return np.concatenate(rows), taken


def _unit(volume: Volume, plane: int) -> tuple[tuple[int, int], int]:
    """Rows and columns that are decoded at once, and how many bytes that costs."""
    height, width = volume.plane_size(plane)
    pixel = volume.channels * volume.dtype.itemsize
    if volume.pieces is not None:
        deep, high, wide = volume.pieces.chunk
        return (high, wide), deep * high * wide * pixel
    return ((1, width), width * pixel) if volume.uniform else ((height, width), height * width * pixel)


def _spread(units: tuple[int, int], out: tuple[int, int], count: int) -> tuple[int, int]:
    """How many rows and columns of parts: at most ``count`` in all, about as many as the picture's sides want."""
    most = min(units[0], out[0]), min(units[1], out[1])
    across = min(most[1], max(1, round(math.sqrt(count * out[1] / out[0]))))
    down = min(most[0], max(1, count // across))
    return down, min(most[1], max(1, count // down))


def _cells(units: int, taken: int, out: int) -> Iterator[tuple[int, int]]:
    """Evenly spread parts along one side, each with its pixels in the picture."""
    for number in range(taken):
        yield int((number + 0.5) * units / taken), (number + 1) * out // taken - number * out // taken


def _part(volume: Volume, plane: int, unit: tuple[int, int], row: int, column: int) -> npt.NDArray[Any]:
    height, width = volume.plane_size(plane)
    y0, x0 = row * unit[0], column * unit[1]
    return volume.read(plane, slice(y0, min(y0 + unit[0], height)), slice(x0, min(x0 + unit[1], width)))


def _fitted(
    values: npt.NDArray[Any], window: tuple[float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Pixels mapped by the window and averaged to a size."""
    grey = np.nan_to_num(values.astype(np.float32), nan=window[0])
    grey = np.clip((grey - window[0]) * (255 / (window[1] - window[0])), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize(size[::-1], Image.Resampling.BOX))
