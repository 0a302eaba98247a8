"""Turns decoded pieces of a volume into a crop of one plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.volume.pieces import Piece, PieceGrid
from embedcache.volume.volume import Volume


def read_crop(
    volume: Volume,
    pieces: PieceGrid,
    plane: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    decode: Callable[[list[Piece]], Sequence[npt.NDArray[Any]]],
    *,
    request_bytes: int | None = None,
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
        Turns neighbouring pieces of one row into their pixels, (planes, h, w) or (planes, h, w, 3) each.
    request_bytes : int, optional
        Bytes of the pieces that are decoded together at most; a whole crop without it.

    Returns
    -------
    ndarray (h, w) or (h, w, 3)
        A copy that nobody else holds.
    """
    grid = volume.kept or pieces.thin_for(rows, columns, volume.cache.limit_bytes)
    around = grid.around(plane, rows, columns)
    if request_bytes is None:
        requests = [[piece for row in around for piece in row]]
    else:
        requests = [part for row in around for part in grid.requests(row, request_bytes)]
    colours = (3,) if volume.channels == 3 else ()
    crop = np.empty((rows[1] - rows[0], columns[1] - columns[0], *colours), volume.dtype)
    for piece, block in volume.cache.gather(requests, decode).items():
        top, bottom = max(rows[0], piece.y0), min(rows[1], piece.y1)
        left, right = max(columns[0], piece.x0), min(columns[1], piece.x1)
        crop[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = block[
            plane - piece.z0, top - piece.y0 : bottom - piece.y0, left - piece.x0 : right - piece.x0
        ]
    return crop
