"""Turns a Zarr group or array into a ``Volume``: OME-Zarr 0.4 and 0.5, Zarr v2 and v3, sharded or not.

Groups are never listed, because over plain HTTP a group lists as empty: the levels come from the
``multiscales`` metadata, and without it from probing ``0``, ``1``, ….
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import VolumeError
from embedcache.files import sha256_hex
from embedcache.volume.array_volume import ArrayVolume
from embedcache.volume.axes import Axes, axes_of
from embedcache.volume.pyramid import Pyramid, level_scale, level_shapes, read_pyramid, voxel_size
from embedcache.volume.tree import ARRAY_FILES, GROUP_FILES, LocalTree, Tree, array_metadata, has_group
from embedcache.volume.volume import DECODE_ERRORS, way_out


@dataclass(frozen=True)
class FoundArray:
    """The array that a level is, before any pixel is read.

    Parameters
    ----------
    source : str
        The group or array that was asked for.
    tree : Tree
        The array's own folder.
    filename : str
        Its metadata's name.
    metadata : bytes
        Its metadata.
    level : int
        Which level it is.
    group : Tree or None
        The group that it is a level of.
    pyramid : Pyramid
        That group's levels.
    """

    source: str
    tree: Tree
    filename: str
    metadata: bytes
    level: int
    group: Tree | None
    pyramid: Pyramid


def looks_like_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array, or holds an array named ``0``."""
    names = {*ARRAY_FILES, *GROUP_FILES}
    return any((folder / name).is_file() for name in names) or (
        array_metadata(LocalTree(folder / "0")) is not None
    )


def open_zarr(folder: Path, *, level: int = 0) -> ArrayVolume:
    """Open the array at ``folder``, or level ``level`` of the group there.

    Raises
    ------
    VolumeError
        When the level is not there, or the metadata cannot be read.
    """
    found = find_array(LocalTree(folder), level=level)
    array, axes = open_array(found)
    volume = ArrayVolume(
        found.source,
        "zarr",
        array.__getitem__,
        dtype=array.dtype,
        axes=axes,
        chunks=array.chunks,
        metadata_digest=sha256_hex(found.metadata),
        level=found.level,
    )
    describe(volume, found, axes)
    return volume


def find_array(tree: Tree, *, level: int) -> FoundArray:
    """The array in a folder, or of level ``level`` of the group there.

    Raises
    ------
    VolumeError
        As of :func:`open_zarr`.
    """
    own_metadata = array_metadata(tree)
    if own_metadata is not None:
        return _as_part_of_group(tree, own_metadata, level)
    pyramid = read_pyramid(tree)
    if not pyramid.paths:
        raise VolumeError(
            f"{tree.name} is a Zarr group without OME metadata (multiscales) and without an array named 0.",
            hint="Give the path of the array inside it.",
        )
    if level >= len(pyramid.paths):
        levels = ", ".join(str(number) for number in range(len(pyramid.paths)))
        raise VolumeError(f"{tree.name} has no level {level}; levels that are there: {levels}.")
    array = tree.child(pyramid.paths[level])
    metadata = array_metadata(array)
    if metadata is None:
        raise VolumeError(
            f"{tree.name}: its metadata names level {level} as '{pyramid.paths[level]}', but no array is there.",
            hint="The volume was copied in part; fetch that level, or choose another one with --level.",
        )
    return FoundArray(tree.name, array, *metadata, level, tree, pyramid)


def _as_part_of_group(tree: Tree, metadata: tuple[str, bytes], level: int) -> FoundArray:
    """An array that was named itself; the group around it tells which level it is, where there is one."""
    parent = tree.parent
    pyramid = Pyramid((), None)
    if parent is not None and (has_group(parent) or tree.last.isdigit()):
        pyramid = read_pyramid(parent)
    own = pyramid.paths.index(tree.last) if tree.last in pyramid.paths else None
    if level not in (0, own):
        raise VolumeError(
            f"{tree.name} is a single array{f', level {own} of its group' if own else ''}; "
            f"it has no level {level} inside.",
            hint=f"Give the group, {tree.name.rpartition('/')[0]}, with --level {level}, or leave --level out.",
        )
    if own is None:
        return FoundArray(tree.name, tree, *metadata, 0, None, Pyramid((), None))
    return FoundArray(tree.name, tree, *metadata, own, parent, pyramid)


def open_array(found: FoundArray) -> tuple[Any, Axes]:
    """The Zarr array behind a volume, and the roles of its dimensions.

    Raises
    ------
    VolumeError
        When it cannot be opened, or is no volume.
    """
    try:
        array: Any = found.tree.array(found.filename, found.metadata)
    except DECODE_ERRORS as error:
        raise VolumeError(
            f"{found.tree.name}: the Zarr array cannot be opened ({type(error).__name__}: {error}).",
            hint=way_out(
                error, "Check that its .zarray or zarr.json is complete and that its codecs are installed."
            ),
        ) from error
    if min(array.chunks, default=1) < 1:
        raise VolumeError(f"{found.tree.name}: chunks of {tuple(array.chunks)} pixels hold nothing.")
    return array, axes_of(array.shape, found.tree.name, found.pyramid.axes)


def describe(volume: ArrayVolume, found: FoundArray, axes: Axes) -> None:
    """Tell a volume what its group knows: the other levels, its scale, the size of a voxel."""
    if found.group is None:
        volume.levels = (axes.size,)
        return
    volume.levels = level_shapes(found.group, found.pyramid)
    volume.scale = level_scale(found.pyramid, volume.levels, found.level, axes.shape)
    volume.voxel_size = voxel_size(found.pyramid, axes.shape)
