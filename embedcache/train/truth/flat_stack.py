"""Turns a stack of label planes of which just one is filled into that plane: labels of a surface are drawn in 2-D.

Ink labels of a segment come as 65 planes, as its surface volume has, with everything in plane 32. Read plane by
plane they would say that the 64 others are background.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from embedcache.volume import Volume, open_volume

_FLAT_NAMES = re.compile(r"(^|_)(inklabels|supervision_mask|validation_mask)(_v\d+)?$")
_BAND, _BLOCK = 256, 4096
"""Pixels that are read at once: a band of rows no wider than a block."""

Spans = tuple[slice, slice]


def known_as_flat(source: str) -> bool:
    """Whether a label file has the name of labels that are drawn on a surface."""
    return _FLAT_NAMES.search(_stem(source)) is not None


def is_ink(source: str) -> bool:
    """Whether a label file has the name of ink labels."""
    match = _FLAT_NAMES.search(_stem(source))
    return match is not None and match[2] == "inklabels"


def _stem(source: str) -> str:
    """The name of a file without its ending; of a level, that of its pyramid."""
    name = next((part for part in reversed(PurePath(source).parts) if not part.isdigit()), "")
    return re.sub(r"(\.ome)?\.[A-Za-z0-9]+$", "", name)


def flat_sentence(volume: Volume, plane: int, what: str) -> str:
    """What was inferred, for the user."""
    lie = "labels lie" if what == "label" else f"the {what} lies"
    taken = "they are" if what == "label" else "it is"
    return f"{lie} in plane {plane} of {volume.n_planes} only: {taken} taken as one 2-D {what} for all planes"


def only_filled_plane(volume: Volume) -> int | None:
    """The plane of a stack that holds values, when it is the only one.

    Reading ends with the second plane in which anything is found. Where a coarser level is there, only those parts
    of the finer one are read in which the coarser has something.

    Parameters
    ----------
    volume : Volume
        Labels or a mask, opened.

    Returns
    -------
    int or None
        None when no plane is filled, or several are.
    """
    if not volume.uniform or volume.n_planes == 1:
        return None
    filled: set[int] = set()
    shadow = _shadow(volume)
    for rows, columns in _pieces(volume):
        if shadow is not None and not shadow[_cells(volume, shadow, rows, columns)].any():
            continue
        for plane in range(volume.n_planes):
            if plane not in filled and volume.read(plane, rows, columns).any():
                filled.add(plane)
                if len(filled) > 1:
                    return None
    return filled.pop() if filled else None


def _shadow(volume: Volume) -> npt.NDArray[np.bool_] | None:
    """Where the coarsest level has anything on any plane, bool (h, w); None where it tells nothing."""
    if len(volume.levels) <= volume.level + 1:
        return None
    with open_volume(volume.source, level=len(volume.levels) - 1) as coarse:
        shadow = np.zeros(coarse.plane_size(0), np.bool_)
        for rows, columns in _pieces(coarse):
            for plane in range(coarse.n_planes):
                found = coarse.read(plane, rows, columns) > 0
                shadow[rows, columns] |= found if found.ndim == 2 else found.any(axis=2)
    return shadow if shadow.any() else None


def _cells(volume: Volume, shadow: npt.NDArray[np.bool_], rows: slice, columns: slice) -> Spans:
    """The cells of a coarser level under a piece, with two more on each side.

    Pyramids round sizes, so that a cell may lie up to one beside where the ratio of the sizes puts it.
    """
    sizes = zip((rows, columns), shadow.shape, volume.plane_size(0), strict=True)
    first, second = (
        slice(max(0, part.start * coarse // fine - 2), part.stop * coarse // fine + 3)
        for part, coarse, fine in sizes
    )
    return first, second


def _pieces(volume: Volume) -> Iterator[Spans]:
    """The planes in bands that suit the chunks, none of them large."""
    band, block = _BAND, _BLOCK
    if volume.chunks is not None:
        band, block = max(1, volume.chunks[1]), max(_BAND, volume.chunks[2])
    height, width = volume.plane_size(0)
    for y in range(0, height, band):
        for x in range(0, width, block):
            yield slice(y, min(y + band, height)), slice(x, min(x + block, width))
