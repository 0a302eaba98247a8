"""Turns the metadata of a Zarr group into a ``Pyramid``: where its levels are, how large, and how fine."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.errors import VolumeError
from embedcache.volume.axes import axes_of
from embedcache.volume.tree import Tree, array_metadata, attributes_of

MICROMETRES = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
"""OME-Zarr's units of length."""

MOST_LEVELS = 64
"""A server that says yes to any name has no more of them; each level is half of the one before."""

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Pyramid:
    """The levels of a group.

    Parameters
    ----------
    paths : tuple of str
        Path of each level's array inside the group, finest first.
    axes : tuple of str or None
        Names of the dimensions, where the metadata has them.
    scales : tuple
        Of each level what a step along each dimension is, in the metadata's units; None where it does not say.
    units : tuple of (str or None)
        Unit of each dimension.
    """

    paths: tuple[str, ...]
    axes: tuple[str, ...] | None
    scales: tuple[tuple[float, ...] | None, ...] = ()
    units: tuple[str | None, ...] = ()


def read_pyramid(group: Tree) -> Pyramid:
    """Levels of a group from its metadata, else by probing ``0``, ``1``, …; no listing."""
    attributes = attributes_of(group)
    try:
        multiscales = (attributes.get("ome") or attributes).get("multiscales")
        if multiscales:
            return _declared(multiscales[0])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise VolumeError(
            f"{group.name}: its multiscales metadata is not as OME-Zarr has it ({type(error).__name__}: {error}).",
            hint="Give the path of the array inside it.",
        ) from error
    paths: list[str] = []
    while len(paths) < MOST_LEVELS and array_metadata(group.child(str(len(paths)))) is not None:
        paths.append(str(len(paths)))
    return Pyramid(tuple(paths), None, (None,) * len(paths))


def _declared(multiscale: dict[str, Any]) -> Pyramid:
    axes, datasets = multiscale.get("axes"), multiscale["datasets"]
    names = tuple(str(axis["name"] if isinstance(axis, dict) else axis) for axis in axes) if axes else None
    units = tuple(axis.get("unit") if isinstance(axis, dict) else None for axis in axes or ())
    common = _scale(multiscale)
    return Pyramid(
        tuple(str(dataset["path"]) for dataset in datasets),
        names,
        tuple(_product(_scale(dataset), common) for dataset in datasets),
        units,
    )


def _scale(holder: dict[str, Any]) -> tuple[float, ...] | None:
    """What its coordinate transformations multiply by; None where there is nothing to be had."""
    for one in holder.get("coordinateTransformations") or ():
        if isinstance(one, dict) and isinstance(one.get("scale"), list):
            values = tuple(float(value) for value in one["scale"])
            if all(math.isfinite(value) and value > 0 for value in values):
                return values
    return None


def _product(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if one is None or other is None or len(one) != len(other):
        return one
    return tuple(a * b for a, b in zip(one, other, strict=True))


def level_shapes(group: Tree, pyramid: Pyramid) -> tuple[tuple[int, ...], ...]:
    """Planes, height and width of every level; () for one that is not there or is no volume."""
    known = array_metadata(group.child(pyramid.paths[0])) if pyramid.paths else None
    if known is not None:
        group.expect([f"{path}/{known[0]}" for path in pyramid.paths])
    return tuple(_shape(group.child(path), pyramid.axes) for path in pyramid.paths)


def _shape(tree: Tree, axes: Sequence[str] | None) -> tuple[int, ...]:
    try:
        found = array_metadata(tree)
        shape = tuple(int(length) for length in json.loads(found[1])["shape"]) if found else ()
        return axes_of(shape, tree.name, axes).size if shape else ()
    except (VolumeError, ValueError, KeyError, TypeError):
        return ()


def level_scale(
    pyramid: Pyramid, shapes: Sequence[tuple[int, ...]], level: int, shape: tuple[int, ...]
) -> Three:
    """Voxels of level 0 per pixel of a level, z y x; ``shape`` is that of the level's array.

    The metadata's word counts; without one, shapes are compared, and levels are halves of each other.
    """
    if level == 0 or level >= len(pyramid.paths):
        return 1.0, 1.0, 1.0
    here, base = pyramid.scales[level], pyramid.scales[0]
    if here is not None and base is not None and len(here) == len(base) == len(shape):
        steps = tuple(a / b for a, b in zip(here, base, strict=True))
        return _three(pyramid, shape, steps, missing=1.0)
    fine, coarse = shapes[0], shapes[level]
    if len(fine) != 3 or len(coarse) != 3:
        return 1.0, 1.0, 1.0
    z, y, x = (2.0 ** round(math.log2(a / b)) for a, b in zip(fine, coarse, strict=True))
    return z, y, x


def voxel_size(pyramid: Pyramid, shape: tuple[int, ...]) -> Three | None:
    """Micrometres of a voxel of level 0, z y x; None where the metadata does not say.

    Writers that know of no voxel size write a scale of 1 and the unit all the same: that says nothing.
    """
    base = pyramid.scales[0] if pyramid.scales else None
    if base is None or len(base) != len(shape) or len(pyramid.units) != len(shape):
        return None
    sizes = tuple(
        value * MICROMETRES.get(unit or "", math.nan) for value, unit in zip(base, pyramid.units, strict=True)
    )
    found = _three(pyramid, shape, sizes, missing=math.nan)
    spatial = _three(pyramid, shape, base, missing=1.0)
    if spatial == (1.0, 1.0, 1.0) or not all(math.isfinite(value) for value in found):
        return None
    return found


def _three(pyramid: Pyramid, shape: tuple[int, ...], values: tuple[float, ...], *, missing: float) -> Three:
    axes = axes_of(shape, "", pyramid.axes)
    return missing if axes.z is None else values[axes.z], values[axes.y], values[axes.x]
