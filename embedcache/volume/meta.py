"""Turns what stands beside pixels (meta.json, names with "7.91um") into voxel sizes; tells copies in part."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedcache.errors import VolumeError

META = "meta.json"
TIFXYZ = ("x.tif", "y.tif", "z.tif")

META_BYTES = 1 << 20
"""A longer meta.json is none of ours."""

_MICROMETRES = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s?(?:um|µm|μm)(?![a-zA-Z])", re.IGNORECASE)
_PARTS_LOOKED_AT = 4


def read_meta(folder: Path) -> dict[str, Any]:
    """``meta.json`` of a folder; empty where there is none that could be volume-cartographer's."""
    path = folder / META
    try:
        if not path.is_file() or path.stat().st_size > META_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # anybody may call a file so; what opens without it opens as before
    return value if isinstance(value, dict) else {}


def voxel_size_of(path: Path) -> tuple[float, float, float] | None:
    """Micrometres per voxel of the base resolution, z y x; None where nothing says so.

    Parameters
    ----------
    path : Path
        The volume. ``voxelsize`` of its ``meta.json`` counts first, then ``7.91um`` in its name or in that of a
        folder around it, the nearest first.
    """
    said = read_meta(path).get("voxelsize")
    if isinstance(said, int | float) and not isinstance(said, bool) and math.isfinite(said) and said > 0:
        return (float(said),) * 3
    return voxel_size_in_name(str(path))


def voxel_size_in_name(text: str) -> tuple[float, float, float] | None:
    """Micrometres per voxel as a path or address names them; None where it does not, or twice."""
    for part in reversed(text.rstrip("/").split("/")[-_PARTS_LOOKED_AT:]):
        sizes = {float(size) for size in _MICROMETRES.findall(part)} - {0.0}
        if sizes:
            return (sizes.pop(),) * 3 if len(sizes) == 1 else None
    return None


def is_tifxyz(folder: Path) -> bool:
    """Whether a folder holds a mesh: three TIFF files of coordinates, as volume-cartographer writes them."""
    if not all((folder / name).is_file() for name in TIFXYZ):
        return False
    if read_meta(folder).get("format") == "tifxyz":
        return True
    return {entry.name for entry in folder.iterdir() if entry.suffix.lower() in (".tif", ".tiff")} == {
        *TIFXYZ
    }


def said_shape(folder: Path) -> tuple[int, int, int] | None:
    """Slices, height and width of a volume as its ``meta.json`` says; None where it says nothing of the kind."""
    meta = read_meta(folder)
    slices, height, width = (meta.get(key) for key in ("slices", "height", "width"))
    if type(slices) is int and type(height) is int and type(width) is int:
        return slices, height, width
    return None


def check_whole(folder: Path, files: Sequence[Path], size: tuple[int, int]) -> None:
    """Refuse a folder of slices that is not what the ``meta.json`` in it says.

    A slice that is missing in the middle would move all behind it, and labels with them.

    Parameters
    ----------
    folder : Path
        Of the slices.
    files : sequence of Path
        Those that are there.
    size : (int, int)
        Height and width of one.

    Raises
    ------
    VolumeError
        When there are fewer or more slices, or other ones.
    """
    expected = said_shape(folder)
    if expected is None:
        return
    if expected[0] != len(files):
        found = f"{len(files):,} are there."
        if len(files) < expected[0]:
            found = f"{len(files):,} files are there: copied in part?{_first_missing(files)}"
        raise _lies(folder, f"says {expected[0]:,} slices, {found}")
    if expected[1:] != size:
        raise _lies(
            folder,
            f"says slices of {expected[1]:,} × {expected[2]:,} pixels (height × width), "
            f"the files have {size[0]:,} × {size[1]:,}.",
        )


def _first_missing(files: Sequence[Path]) -> str:
    """Where the numbers in the names have their first gap; empty where the names are no numbers."""
    if not all(path.stem.isdecimal() for path in files):
        return ""
    there = {int(path.stem) for path in files}
    gap = next(number for number in range(len(there) + 1) if number not in there)
    return f" The first that is missing is number {gap}."


def _lies(folder: Path, what: str) -> VolumeError:
    return VolumeError(
        f"{folder}: {META} {what}",
        hint=f"Fetch what is missing; to take the files as a volume of their own, take {META} out of the folder.",
    )
