"""Turns files that hold a mask into run lengths; what is stored in chunks is read by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import InputError, counted
from embedcache.results.output_place import PICTURES_NOTE
from embedcache.results.rle import RunWriter
from embedcache.volume import Volume, open_volume
from embedcache.volume.layouts import source_stem

BLOCK_PIXELS = 1 << 22
"""Pixels that are looked at together."""

PROBABILITIES_HINT = "Say above which probability a pixel is in the mask: --threshold 0.5."


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder that ``predict`` wrote; empty where it wrote none there."""
    if folder.suffix or not (folder / PICTURES_NOTE).is_file():
        return []
    return sorted(folder.glob("*.png"))


def mask_runs(path: str | Path, threshold: float | None = None) -> str:
    """The run lengths of the only plane of a file.

    Parameters
    ----------
    path : path
        Whatever opens as a volume of one grey plane.
    threshold : float, optional
        For probabilities, as floats or as the 0…255 of a picture: above it is foreground. Without it the plane is
        a mask: 0 and one other value.

    Raises
    ------
    InputError
        When it has several planes, is coloured, has several values and there is no threshold, or is a mask of 0
        and 1 and there is one.
    """
    with closing(open_volume(path, read_memory=BLOCK_PIXELS)) as volume:
        if volume.n_planes != 1:
            raise InputError(
                f"{path} holds {counted(volume.n_planes, 'plane')}; a mask is one.",
                hint="predict --flatten mean or --flatten max writes one plane for a whole surface volume.",
            )
        if volume.channels != 1:
            raise InputError(f"{path} is a colour picture; a mask is grey, 0 and one other value.")
        found = _Foreground(str(path), volume.dtype, threshold)
        writer = RunWriter()
        for rows in _blocks(volume):
            writer.add(found.of(rows))
    found.require_probabilities()
    return writer.text()


def _blocks(volume: Volume) -> Iterator[npt.NDArray[Any]]:
    height, width = volume.plane_size(0)
    stored = 1 if volume.chunks is None else volume.chunks[1]
    # whole rows of chunks, and a picture as a whole: nothing is decoded twice, whatever is kept of it
    step = max(1, BLOCK_PIXELS // width // stored) * stored if volume.uniform else height
    for first in range(0, height, step):
        yield volume.read(0, slice(first, min(first + step, height)), slice(0, width))


class _Foreground:
    """Tells the foreground of blocks, and remembers which value a mask has there."""

    def __init__(self, path: str, dtype: np.dtype[Any], threshold: float | None) -> None:
        self._path = path
        self._threshold = threshold
        self._value: Any = None
        self._most = 0
        if threshold is None and dtype.kind == "f":
            raise InputError(f"{path} holds probabilities ({dtype}), not a mask.", hint=PROBABILITIES_HINT)
        self._whole = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0

    def of(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Where the foreground is; NaN is none."""
        if self._threshold is not None:
            self._most = max(self._most, int(rows.max())) if self._whole > 1 else 0
            return np.asarray(rows > self._threshold * self._whole, dtype=np.bool_)
        found = np.asarray(rows != 0, dtype=np.bool_)
        values = rows[found]
        if len(values) == 0:
            return found
        self._value = values[0] if self._value is None else self._value
        other = values[values != self._value]
        if len(other):
            raise InputError(
                f"{self._path} holds grey values ({self._value}, {other[0]}, …), not a mask of 0 and one "
                "other value.",
                hint=PROBABILITIES_HINT,
            )
        return found

    def require_probabilities(self) -> None:
        """Refuse a mask of 0 and 1 with a threshold: nothing in it would be above, and it would seem empty."""
        if self._most == 1:
            raise InputError(
                f"{self._path} holds 0 and 1, a mask and no probabilities up to {self._whole:g}.",
                hint="Submit masks without --threshold, and give the csv that comes out beside probabilities.",
            )


def stem_of(path: str | Path) -> str:
    """What a mask is called after its file: the name without ending, or that of its fragment's folder."""
    return source_stem(str(path))
