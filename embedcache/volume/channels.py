"""Turns a colour recipe's name into the planes that become red, green and blue."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError, counted
from embedcache.volume.tuples import Triple, draw_tuples, is_random, parse_random
from embedcache.volume.volume import Volume

_DEPTH = re.compile(r"(\d+)-(\d+)")


def canonical(channels: str) -> str:
    """The one way of writing a colour recipe, so that equal recipes give equal fingerprints.

    Raises
    ------
    VolumeError
        When it is none.
    """
    text = channels.strip().lower().replace(" ", "")
    if text in ("repeat", "rgb"):
        return text
    if text == "adjacent":
        return "adjacent:1"
    step = re.fullmatch(r"adjacent:(\d+)", text)
    if step and int(step[1]) > 0:
        return f"adjacent:{int(step[1])}"
    if is_random(text):
        count, seed = parse_random(text, "--channels")
        return f"random:{count}:{seed}"
    if text.startswith("depth:"):
        parts = [_DEPTH.fullmatch(part) for part in text[len("depth:") :].split(",")]
        ranges = [(int(part[1]), int(part[2])) for part in parts if part]
        if len(parts) == len(ranges) == 3 and all(first <= last for first, last in ranges):
            return "depth:" + ",".join(f"{first}-{last}" for first, last in ranges)
    raise VolumeError(
        f"--channels {channels}: expected repeat, rgb, adjacent[:STEP], random:N[:SEED] or depth:A-B,C-D,E-F "
        "(three ranges of planes, ends included, the smaller number first)."
    )


def resolve_channels(volume: Volume, channels: str | None, recipe_from: str = "") -> str:
    """The colour recipe of a volume, written in its one way; the default where none is given.

    Parameters
    ----------
    volume : Volume
    channels : str or None
        As given, or of a recipe.
    recipe_from : str
        The store or checkpoint whose recipe it is; empty: the user's own wish.

    Raises
    ------
    VolumeError
        When the recipe does not fit the volume.
    """
    try:
        return _fitting(volume, channels)
    except VolumeError as error:
        if not recipe_from or not channels:
            raise
        kind = "in colour" if volume.channels == 3 else "grey"
        if (volume.channels == 3) == (channels == "rgb"):
            planes = counted(volume.n_planes, "plane")
            kind = f"{kind} and has {planes}" if volume.uniform else "a collection of images"
        raise VolumeError(
            f"The recipe of {recipe_from} has --channels {channels}, and {volume.source} is {kind}: this model "
            "cannot be used on it.",
        ) from error


def _fitting(volume: Volume, channels: str | None) -> str:
    recipe = canonical(channels) if channels else ("rgb" if volume.channels == 3 else "repeat")
    if volume.channels == 3 and recipe != "rgb":
        raise VolumeError(
            f"{volume.source} is in colour, and --channels {recipe} builds colours from grey planes.",
            hint="Leave --channels out, or give rgb; convert the images to grey to use the other recipes.",
        )
    if volume.channels == 1 and recipe == "rgb":
        raise VolumeError(
            f"{volume.source} is grey, and --channels rgb needs colour.",
            hint="Leave --channels out, or give repeat, adjacent, random:N or depth:A-B,C-D,E-F.",
        )
    if not volume.uniform and recipe not in ("repeat", "rgb"):
        raise VolumeError(
            f"{volume.source} is a collection of images; --channels {recipe} needs planes that lie on each other.",
            hint="Leave --channels out; for slices of one volume save them as TIFF or Zarr.",
        )
    drawn_triples(recipe, volume.n_planes)  # refused where there are not so many
    for first, last in depth_ranges(recipe):
        if last >= volume.n_planes:
            raise VolumeError(
                f"--channels {recipe}: planes {first}-{last} lie outside {volume.source}, which has planes "
                f"0 to {volume.n_planes - 1}."
            )
    return recipe


def depth_ranges(recipe: str) -> tuple[tuple[int, int], ...]:
    """Plane ranges of the depth recipe, ends included; empty for the others."""
    found = _DEPTH.findall(recipe) if recipe.startswith("depth:") else []
    return tuple((int(first), int(last)) for first, last in found)


def drawn_triples(recipe: str, planes: int) -> tuple[Triple, ...]:
    """The planes of each composite of the random recipe, of a source of so many; empty for the others."""
    if not recipe.startswith("random:"):
        return ()
    count, seed = parse_random(recipe, "--channels")
    return draw_tuples(planes, count, seed)


def tile_planes(recipe: str, planes: int) -> int:
    """Planes that have tiles, of a source of so many: its own, or the composites of depth and random."""
    if recipe.startswith("random:"):
        return parse_random(recipe, "--channels")[0]
    return 1 if depth_ranges(recipe) else planes


def plane_name(recipe: str, planes: int, plane: int) -> str:
    """What people call a plane that has tiles: ``"z=12"``, or ``"z=3+17+40"`` of three planes drawn at random."""
    triples = drawn_triples(recipe, planes)
    return "z=" + ("+".join(map(str, triples[plane])) if triples else str(plane))


def source_planes(recipe: str, planes: int, plane: int) -> tuple[int, ...]:
    """The planes of the source, ascending, that a plane that has tiles shows; ``adjacent`` shows its own."""
    ranges = depth_ranges(recipe)
    if ranges:
        return tuple(sorted({one for first, last in ranges for one in range(first, last + 1)}))
    triples = drawn_triples(recipe, planes)
    return triples[plane] if triples else (plane,)


def read_colours(recipe: str, volume: Volume, plane: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
    """A crop in its colours, (h, w) or (h, w, 3); float32 for the depth recipe, whose colours are means."""
    ranges = depth_ranges(recipe)
    if ranges:
        return np.stack([_mean_plane(volume, first, last, rows, columns) for first, last in ranges], axis=-1)
    if recipe.startswith("random:"):
        three = drawn_triples(recipe, volume.n_planes)[plane]
        return np.stack([volume.read(one, rows, columns) for one in three], axis=-1)
    if recipe.startswith("adjacent:"):
        step = int(recipe.split(":")[1])
        planes = [min(max(plane + shift, 0), volume.n_planes - 1) for shift in (-step, 0, step)]
        return np.stack([volume.read(one, rows, columns) for one in planes], axis=-1)
    return volume.read(plane, rows, columns)


def _mean_plane(
    volume: Volume, first: int, last: int, rows: slice, columns: slice
) -> npt.NDArray[np.float32]:
    total = volume.read(first, rows, columns).astype(np.float64)
    for plane in range(first + 1, last + 1):
        total += volume.read(plane, rows, columns)
    return (total / (last - first + 1)).astype(np.float32)
