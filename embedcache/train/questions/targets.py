"""Turns masks in tile px into training targets on the decoder's 256 × 256 grid, and weights beside them.

One cell of that grid is 4 × 4 pixels of the 1024 frame. A tile's content is scaled into the frame's top left
corner and the rest is padding, so a cell's target is the exact area average of the tile pixels under it, at
least one half; cells that lie mostly in the padding, or mostly where nothing is supervised, have weight 0.

Areas are counted in whole numbers: along an axis of L px a cell is 4 · L units and a pixel as many as the frame's
length. So an object's cells are the same whether they are computed in its box or in the whole tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.geometry import IMAGE_SIZE, LOW_RES_SIZE, Tile
from embedcache.train.questions.object_table import TileObject

FloatArray = npt.NDArray[np.float32]
Cells = npt.NDArray[np.uint8]

CUT = 0.5
"""Share of a cell's supervised part that makes it the object's."""

_CELL = IMAGE_SIZE // LOW_RES_SIZE
_EXACT_IN_FLOAT32 = 2**24


@lru_cache(maxsize=64)
def _units(length: int, frame_length: int, dtype: type) -> npt.NDArray[Any]:
    """How many units of each cell each tile pixel covers, along one axis: whole numbers, (256, length)."""
    edges = np.arange(length + 1, dtype=np.int64) * frame_length
    starts = np.arange(LOW_RES_SIZE, dtype=np.int64)[:, None] * (_CELL * length)
    overlap = np.minimum(edges[1:], starts + _CELL * length) - np.maximum(edges[:-1], starts)
    return np.asarray(np.clip(overlap, 0, None), dtype=dtype)


def _full(tile: Tile) -> int:
    """Units of a whole cell."""
    return _CELL * tile.height * _CELL * tile.width


def _dtype(tile: Tile) -> type:
    return np.float32 if _full(tile) <= _EXACT_IN_FLOAT32 else np.float64


def _pixels_per_cell(tile: Tile) -> tuple[int, int] | None:
    """Whole pixels of a cell along both axes; None where cells cut pixels, or the tile is no square."""
    square = tile.input_size == (IMAGE_SIZE, IMAGE_SIZE)
    if not square or tile.height % LOW_RES_SIZE or tile.width % LOW_RES_SIZE:
        return None
    return tile.height // LOW_RES_SIZE, tile.width // LOW_RES_SIZE


def _covered(thing: TileObject, tile: Tile) -> tuple[tuple[slice, slice], npt.NDArray[Any]]:
    """Units of the cells under an object's piece, and which cells these are."""
    (y, x), (h, w) = thing.corner, thing.inside.shape
    steps = _pixels_per_cell(tile)
    if steps is not None:
        return _block_sums(thing, steps, _full(tile) // (steps[0] * steps[1]))
    frame, dtype = tile.input_size, _dtype(tile)
    rows = _cells_of(y, y + h, tile.height, frame[0])
    columns = _cells_of(x, x + w, tile.width, frame[1])
    down = _units(tile.height, frame[0], dtype)[rows, y : y + h]
    across = _units(tile.width, frame[1], dtype)[columns, x : x + w]
    return (rows, columns), down @ thing.inside.astype(dtype) @ across.T


def _cells_of(start: int, end: int, length: int, frame_length: int) -> slice:
    """Cells that pixels ``start`` to ``end`` lie in, along one axis."""
    size = _CELL * length
    return slice(start * frame_length // size, -(-end * frame_length // size))


def _block_sums(
    thing: TileObject, steps: tuple[int, int], units: int
) -> tuple[tuple[slice, slice], npt.NDArray[Any]]:
    """The same where a cell is so many whole pixels: sums of blocks."""
    (y, x), (h, w), (down, across) = thing.corner, thing.inside.shape, steps
    rows, columns = slice(y // down, -(-(y + h) // down)), slice(x // across, -(-(x + w) // across))
    top, left = y - rows.start * down, x - columns.start * across
    block = thing.inside
    shape = ((rows.stop - rows.start) * down, (columns.stop - columns.start) * across)
    if shape != (h, w):
        block = np.zeros(shape, np.bool_)
        block[top : top + h, left : left + w] = thing.inside
    pixels = block.view(np.uint8)
    lines = pixels[::down].astype(np.uint16)
    for row in range(1, down):
        lines += pixels[row::down]
    cells = lines[:, ::across].astype(np.int64)
    for column in range(1, across):
        cells += lines[:, column::across]
    return (rows, columns), cells * units


def area_average(values: npt.NDArray[Any], tile: Tile) -> FloatArray:
    """Average of every cell, the padding counted as 0: bool or float (height, width) to float32 (256, 256)."""
    average = np.zeros((LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
    if values.dtype == np.bool_:
        place, units = _covered(TileObject.of_mask(values), tile)
        average[place] = units / _full(tile)
        return average
    steps = _pixels_per_cell(tile)
    if steps is not None:
        cells = values.reshape(LOW_RES_SIZE, steps[0], LOW_RES_SIZE, steps[1])
        return np.asarray(cells.mean(axis=(1, 3)), dtype=np.float32)
    height, width = tile.input_size
    down, across = (
        _units(tile.height, height, np.float64) / (_CELL * tile.height),
        _units(tile.width, width, np.float64) / (_CELL * tile.width),
    )
    return np.asarray(down @ values @ across.T, dtype=np.float32)


@lru_cache(maxsize=64)
def _all_counted(tile: Tile) -> npt.NDArray[np.float64]:
    """Units of each cell's content."""
    frame = tile.input_size
    down = _units(tile.height, frame[0], np.float64).sum(axis=1)
    across = _units(tile.width, frame[1], np.float64).sum(axis=1)
    return np.outer(down, across)


def counted_units(supervised: npt.NDArray[np.bool_] | None, tile: Tile) -> npt.NDArray[np.float64]:
    """Units of each cell that are content and supervised, float64 (256, 256); no mask: all of the content."""
    if supervised is None or supervised.all():
        return _all_counted(Tile(0, 0, 0, tile.height, tile.width))
    counted = np.zeros((LOW_RES_SIZE, LOW_RES_SIZE), np.float64)
    place, units = _covered(TileObject.of_mask(supervised), tile)
    counted[place] = units
    return counted


def content_share(tile: Tile) -> FloatArray:
    """Share of every cell that is content rather than padding: float32 (256, 256)."""
    return np.asarray(counted_units(None, tile) / _full(tile), dtype=np.float32)


def weight_of(counted: npt.NDArray[np.float64], tile: Tile) -> Cells:
    """1 where at least half of a cell is content and supervised, else 0."""
    return np.asarray(2 * counted >= _full(tile), dtype=np.uint8)


def target_of(thing: TileObject, counted: npt.NDArray[np.float64], tile: Tile, cut: float = CUT) -> Cells:
    """1 where at least ``cut`` of a cell's supervised part belongs to the object, else 0: uint8 (256, 256).

    Parameters
    ----------
    thing : TileObject
        Without pixels that are not supervised.
    counted : float64 (256, 256)
        Of :func:`counted_units`.
    tile : Tile
        As seen.
    cut : float
        Between 0 and 1.
    """
    target = np.zeros((LOW_RES_SIZE, LOW_RES_SIZE), np.uint8)
    place, units = _covered(thing, tile)
    here = counted[place]
    target[place] = (units >= cut * here) & (here > 0)
    return target


def low_res_targets(
    masks: Sequence[TileObject] | npt.NDArray[np.bool_],
    supervised: npt.NDArray[np.bool_] | None,
    tile: Tile,
    *,
    cut: float = CUT,
) -> tuple[Cells, Cells]:
    """Targets and weights of a tile's objects.

    Parameters
    ----------
    masks : bool (P, height, width), or P objects
        In px of the tile as seen.
    supervised : bool (height, width), optional
        Where labels count; default: everywhere.
    tile : Tile
    cut : float
        The share of a cell that makes it the object's.

    Returns
    -------
    targets : uint8 (P, 256, 256)
        1 where at least ``cut`` of a cell's supervised part belongs to the object, else 0.
    weight : uint8 (256, 256)
        1 where at least half of a cell is content and supervised, else 0.
    """
    seen = tile.seen
    counted = counted_units(supervised, seen)
    if isinstance(masks, np.ndarray):
        masks = [TileObject.of_mask(m if supervised is None else m & supervised) for m in masks]
    return np.stack([target_of(thing, counted, seen, cut) for thing in masks]), weight_of(counted, seen)
