"""Turns decoded pieces of a volume into a crop of one plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.volume.pieces import Piece, PieceGrid
from embedcache.volume.volume import Volume

Box = tuple[slice, slice]


def read_crop(
    volume: Volume,
    pieces: PieceGrid,
    plane: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    decode: Callable[[list[Piece]], Sequence[npt.NDArray[Any]]],
    *,
    together: bool = False,
) -> npt.NDArray[Any]:
    """A crop of one plane, put together from pieces that are kept in the volume's cache.

    Parameters
    ----------
    volume, pieces : Volume, PieceGrid
        What is read, and its storage grid.
    plane : int
        Index of the plane.
    rows, columns : tuple of int
        First and end of the crop.
    decode : callable
        Turns pieces of one layer into their pixels, (planes, h, w) or (planes, h, w, 3) each.
    together : bool
        Whether the pieces of a crop are decoded in one call; else one by one, shared by all threads that wait for
        them. (Boxes of many chunks are slower than one chunk at a time: they must be cut apart again.)

    Returns
    -------
    ndarray (h, w) or (h, w, 3)
        A copy that nobody else holds.
    """
    grid = volume.kept or pieces.thin_for(rows, columns, volume.cache.limit_bytes)
    pasted = _pasted(grid, plane, rows, columns)
    requests = [list(pasted)] if together else [[piece] for piece in pasted]
    colours = (3,) if volume.channels == 3 else ()
    crop = np.empty((rows[1] - rows[0], columns[1] - columns[0], *colours), volume.dtype)
    for piece, block in volume.cache.gather(requests, decode).items():
        there, here = pasted[piece]
        crop[there] = block[plane - piece.z0][here]
    return crop


def _pasted(
    grid: PieceGrid, plane: int, rows: tuple[int, int], columns: tuple[int, int]
) -> dict[Piece, tuple[Box, Box]]:
    """Pieces around a crop, and which part of the crop is which part of each."""
    return _pasted_from_layer(grid, grid.spans(0, plane, plane + 1)[0], rows, columns)


@lru_cache(maxsize=256)
def _pasted_from_layer(
    grid: PieceGrid, layer: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> dict[Piece, tuple[Box, Box]]:
    # Remembered, for the planes of a column that follow each other ask for the same.
    found = {}
    for piece in grid.around(layer[0], rows, columns):
        top, bottom = max(rows[0], piece.y0), min(rows[1], piece.y1)
        left, right = max(columns[0], piece.x0), min(columns[1], piece.x1)
        there = slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0])
        here = slice(top - piece.y0, bottom - piece.y0), slice(left - piece.x0, right - piece.x0)
        found[piece] = there, here
    return found
