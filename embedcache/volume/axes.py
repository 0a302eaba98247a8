"""Turns the shape or the axis names of an array into the roles of its dimensions: z, y, x, colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError

Fetch = Callable[[tuple[int | slice, ...]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Axes:
    """Which dimension of an array is which; all others have length 1.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    z, c : int or None
        Dimension of the planes, of the colours.
    y, x : int
        Dimensions of rows and columns.
    """

    shape: tuple[int, ...]
    z: int | None
    y: int
    x: int
    c: int | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Planes, height, width."""
        return (1 if self.z is None else self.shape[self.z]), self.shape[self.y], self.shape[self.x]

    def pick(self, lengths: Sequence[int]) -> tuple[int, int, int]:
        """The (z, y, x) entries of one number per dimension."""
        return (1 if self.z is None else int(lengths[self.z])), int(lengths[self.y]), int(lengths[self.x])

    def fetch(self, get: Fetch, box: tuple[slice, slice, slice]) -> npt.NDArray[Any]:
        """Read a box as (z, y, x) or (z, y, x, 3)."""
        index: list[int | slice] = [0] * len(self.shape)
        index[self.y], index[self.x] = box[1], box[2]
        if self.z is not None:
            index[self.z] = box[0]
        if self.c is not None:
            index[self.c] = slice(None)
        values = np.asarray(get(tuple(index)))
        kept = [axis for axis, part in enumerate(index) if isinstance(part, slice)]
        wanted = [axis for axis in (self.z, self.y, self.x, self.c) if axis is not None]
        values = values.transpose([kept.index(axis) for axis in wanted])
        return values if self.z is not None else values[np.newaxis]


def axes_of(shape: tuple[int, ...], source: str, names: Sequence[str] | None = None) -> Axes:
    """Tell which dimension is which, by name or by shape.

    Raises
    ------
    VolumeError
        When more than three dimensions (and three colours) are longer than 1.
    """
    if 0 in shape:
        raise VolumeError(f"{source}: the array of shape {shape} is empty.")
    if names is not None and len(names) == len(shape):
        axes = _axes_by_name(shape, [name.lower() for name in names])
    else:
        axes = _axes_by_shape(shape)
    if axes is None:
        named = "" if names is None else f" with axes {list(names)}"
        raise VolumeError(
            f"{source}: an array of shape {shape}{named} is not a volume; "
            "expected (Z, Y, X), (Y, X), or (Z, Y, X, 3), with leading axes of length 1 at most.",
            hint="Write the channel or time point that you need as a volume of its own.",
        )
    return axes


def _axes_by_name(shape: tuple[int, ...], names: list[str]) -> Axes | None:
    at = {name: axis for axis, name in enumerate(names)}
    if "y" not in at or "x" not in at:
        return None
    colour = at.get("c") if "c" in at and shape[at["c"]] == 3 else None
    used = {at["y"], at["x"], at.get("z"), colour}
    if any(length != 1 for axis, length in enumerate(shape) if axis not in used):
        return None
    return Axes(shape, at.get("z"), at["y"], at["x"], colour)


def _axes_by_shape(shape: tuple[int, ...]) -> Axes | None:
    if len(shape) < 2:
        return None
    first = 0
    while len(shape) - first > (4 if shape[-1] == 3 else 3):
        if shape[first] != 1:
            return None
        first += 1
    left = len(shape) - first
    if left == 4:
        return Axes(shape, first, first + 1, first + 2, first + 3)
    if left == 3 and shape[-1] == 3:
        return Axes(shape, None, first, first + 1, first + 2)
    if left == 3:
        return Axes(shape, first, first + 1, first + 2)
    return Axes(shape, None, first, first + 1) if left == 2 else None
