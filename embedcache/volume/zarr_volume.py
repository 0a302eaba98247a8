"""Turns a Zarr group or array into a ``Volume``: OME-Zarr 0.4 and 0.5, Zarr v2 and v3, sharded or not.

Groups are never listed, because over plain HTTP a group lists as empty: the levels come from the
``multiscales`` metadata, and without it from probing ``0``, ``1``, ….
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from embedcache.errors import VolumeError
from embedcache.files import sha256_hex
from embedcache.volume.array_volume import ArrayVolume
from embedcache.volume.axes import axes_of
from embedcache.volume.volume import DECODE_ERRORS, way_out

ARRAY_FILES = (".zarray", "zarr.json")
GROUP_FILES = (".zgroup", ".zattrs", "zarr.json")


@dataclass(frozen=True)
class Pyramid:
    """The levels of a group.

    Parameters
    ----------
    paths : tuple of str
        Path of each level's array inside the group, finest first.
    axes : tuple of str or None
        Names of the dimensions, where the metadata has them.
    """

    paths: tuple[str, ...]
    axes: tuple[str, ...] | None


def looks_like_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array, or holds an array named ``0``."""
    names = {*ARRAY_FILES, *GROUP_FILES}
    return any((folder / name).is_file() for name in names) or _array_metadata(folder / "0") is not None


def open_zarr(folder: Path, *, level: int = 0) -> ArrayVolume:
    """Open the array at ``folder``, or level ``level`` of the group there.

    Raises
    ------
    VolumeError
        When the level is not there, or the metadata cannot be read.
    """
    if _array_metadata(folder) is not None:
        own = _level_in_parent(folder)
        if level not in (0, own):
            raise VolumeError(
                f"{folder} is a single array{f', level {own} of its group' if own else ''}; "
                f"it has no level {level} inside.",
                hint=f"Give the group, {folder.parent}, with --level {level}, or leave --level out.",
            )
        pyramid = read_pyramid(folder.parent) if own is not None else None
        return _open_array(folder, own or 0, pyramid.axes if pyramid else None)
    pyramid = read_pyramid(folder)
    if not pyramid.paths:
        raise VolumeError(
            f"{folder} is a Zarr group without OME metadata (multiscales) and without an array named 0.",
            hint="Give the path of the array inside it.",
        )
    if level >= len(pyramid.paths):
        levels = ", ".join(str(number) for number in range(len(pyramid.paths)))
        raise VolumeError(f"{folder} has no level {level}; levels that are there: {levels}.")
    array = folder / pyramid.paths[level]
    if _array_metadata(array) is None:
        raise VolumeError(
            f"{folder}: its metadata names level {level} as '{pyramid.paths[level]}', but no array is there.",
            hint="The volume was copied in part; fetch that level, or choose another one with --level.",
        )
    return _open_array(array, level, pyramid.axes, source=folder)


def read_pyramid(group: Path) -> Pyramid:
    """Levels of a group from its metadata, else by probing ``0``, ``1``, …; no listing."""
    attributes = _attributes(group)
    try:
        multiscales = (attributes.get("ome") or attributes).get("multiscales")
        if multiscales:
            return _declared(multiscales[0])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise VolumeError(
            f"{group}: its multiscales metadata is not as OME-Zarr has it ({type(error).__name__}: {error}).",
            hint="Give the path of the array inside it.",
        ) from error
    paths: list[str] = []
    while _array_metadata(group / str(len(paths))) is not None:
        paths.append(str(len(paths)))
    return Pyramid(tuple(paths), None)


def _declared(multiscale: dict[str, Any]) -> Pyramid:
    axes = multiscale.get("axes")
    names = tuple(str(axis["name"] if isinstance(axis, dict) else axis) for axis in axes) if axes else None
    return Pyramid(tuple(str(dataset["path"]) for dataset in multiscale["datasets"]), names)


def _level_in_parent(folder: Path) -> int | None:
    """Which level of the group around it an array is; None when it stands alone."""
    paths = read_pyramid(folder.parent).paths if _has_group(folder.parent) or folder.name.isdigit() else ()
    return paths.index(folder.name) if folder.name in paths else None


def _open_array(
    folder: Path, level: int, axes: tuple[str, ...] | None, *, source: Path | None = None
) -> ArrayVolume:
    metadata = _array_metadata(folder)
    assert metadata is not None
    try:
        array: Any = zarr.open_array(str(folder), mode="r")
    except DECODE_ERRORS as error:
        raise VolumeError(
            f"{folder}: the Zarr array cannot be opened ({type(error).__name__}: {error}).",
            hint=way_out(
                error, "Check that its .zarray or zarr.json is complete and that its codecs are installed."
            ),
        ) from error
    return ArrayVolume(
        str(source or folder),
        "zarr",
        array.__getitem__,
        dtype=array.dtype,
        axes=axes_of(array.shape, str(folder), axes),
        chunks=array.chunks,
        metadata_digest=sha256_hex(metadata),
        level=level,
    )


def _array_metadata(folder: Path) -> bytes | None:
    """The metadata file of a Zarr array; None when there is no array."""
    if (folder / ".zarray").is_file():
        return (folder / ".zarray").read_bytes()
    if (folder / "zarr.json").is_file() and _json(folder / "zarr.json").get("node_type") == "array":
        return (folder / "zarr.json").read_bytes()
    return None


def _has_group(folder: Path) -> bool:
    return any((folder / name).is_file() for name in GROUP_FILES)


def _attributes(group: Path) -> dict[str, Any]:
    if (group / "zarr.json").is_file():
        attributes = _json(group / "zarr.json").get("attributes")
    else:
        attributes = _json(group / ".zattrs") if (group / ".zattrs").is_file() else {}
    return attributes if isinstance(attributes, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VolumeError(
            f"{path} is not readable as JSON ({error}).", hint=way_out(error, "Fetch the file again.")
        ) from error
    return value if isinstance(value, dict) else {}
