"""Turns the file of a mask into the pixels of a volume that it is positive on, whatever its integer factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.volume.opening import open_volume
from embedcache.volume.volume import Volume


class MaskPlanes:
    """A mask beside the volume that it belongs to.

    Parameters
    ----------
    mask : Volume
        The opened mask: one plane for all, the same planes, or images of the same names.
    volume : Volume
        What it belongs to.
    planes : int
        Planes that are asked for.
    """

    def __init__(self, mask: Volume, volume: Volume, planes: int) -> None:
        self._mask, self._volume = mask, volume
        self.plane_of = _plane_of_mask(mask, planes, volume)

    def touches(self, plane: int, y0: int, x0: int, height: int, width: int) -> bool:
        """Whether it is positive anywhere in a box of a plane."""
        return bool(self._positive(plane, (y0, y0 + height), (x0, x0 + width))[0].any())

    def read(self, plane: int, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        """Which pixels of a crop of the volume touch a positive one of the mask, (h, w) bool."""
        y, x = (rows.start, rows.stop), (columns.start, columns.stop)
        positive, first, (up, down) = self._positive(plane, y, x)
        for axis, (start, stop) in enumerate((y, x)):
            place = np.arange(start, stop)
            low = np.minimum(place * up // down, first[axis] + positive.shape[axis] - 1) - first[axis]
            if up == 1:
                positive = np.take(positive, low, axis=axis)
            else:
                positive = np.logical_or.reduceat(positive, low, axis=axis)
        return positive

    def _positive(
        self, plane: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[npt.NDArray[np.bool_], tuple[int, int], tuple[int, int]]:
        """The mask's own pixels around a crop, their first row and column, and the factors up and down."""
        own_plane = self.plane_of(plane)
        own = self._mask.plane_size(own_plane)
        up, down = mask_factor(
            self._volume.plane_size(plane), own, f"--mask {self._mask.source}", self._volume
        )
        y, x = _scaled(*rows, up, down, own[0]), _scaled(*columns, up, down, own[1])
        positive: npt.NDArray[np.bool_] = self._mask.read(own_plane, y, x) > 0
        if positive.ndim == 3:
            positive = np.any(positive, axis=-1)
        return positive, (y.start, x.start), (up, down)


@contextmanager
def open_mask(path: str, volume: Volume, planes: int | None = None) -> Iterator[MaskPlanes]:
    """A mask of a volume, by default of all its planes.

    Raises
    ------
    VolumeError
        When it cannot be opened, or has other planes.
    """
    with open_volume(path) as mask:
        yield MaskPlanes(mask, volume, volume.n_planes if planes is None else planes)


def _plane_of_mask(mask: Volume, planes: int, volume: Volume) -> Callable[[int], int]:
    """Which plane of the mask belongs to a plane of the volume."""
    by_name = not mask.uniform and not volume.uniform and Path(mask.source).is_dir()
    if mask.n_planes == 1 and not by_name:
        return lambda plane: 0
    if by_name:
        stems = {PurePath(mask.plane_name(plane)).stem: plane for plane in range(mask.n_planes)}
        names = [PurePath(volume.plane_name(plane)).stem for plane in range(planes)]
        missing = [name for name in names if name not in stems]
        if missing:
            more = " …" if len(missing) > 5 else ""
            raise VolumeError(
                f"--mask {mask.source} has no image for {', '.join(missing[:5])}{more}.",
                hint="Masks are matched to images by their names without the ending.",
            )
        return lambda plane: stems[names[plane]]
    if mask.n_planes != planes:
        raise VolumeError(
            f"--mask {mask.source} has {mask.n_planes} planes, the volume has {planes}.",
            hint="Give a mask of the same planes, or one 2-D image for all of them.",
        )
    return lambda plane: plane


def mask_factor(size: tuple[int, int], own: tuple[int, int], name: str, volume: Volume) -> tuple[int, int]:
    """By which integer a mask is larger, and by which it is smaller, than a plane; one of them is 1.

    A pyramid rounds its sizes up or down, so a size may be off by less than the factor.
    """
    for larger, smaller, swap in ((own, size, False), (size, own, True)):
        factor = max(1, round(larger[0] / smaller[0]))
        if all(abs(big - small * factor) < factor for big, small in zip(larger, smaller, strict=True)):
            return (1, factor) if swap else (factor, 1)
    raise VolumeError(
        f"{name} is {own[0]} × {own[1]} pixels, the plane of {volume.source} is {size[0]} × {size[1]}.",
        hint="Expected the same size, or an integer multiple or fraction of it.",
    )


def _scaled(start: int, stop: int, up: int, down: int, size: int) -> slice:
    """Volume px to pixels of the mask, rounded outward and kept inside it."""
    first = min(start * up // down, size - 1)
    return slice(first, min(max(-(-stop * up // down), first + 1), size))
