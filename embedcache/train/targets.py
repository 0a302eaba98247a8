"""Turns masks in tile px into training targets on the decoder's 256 × 256 grid, and weights beside them.

One cell of that grid is 4 × 4 pixels of the 1024 frame. A tile's content is scaled into the frame's top left
corner and the rest is padding, so a cell's target is the exact area average of the tile pixels under it, at
least one half; cells that lie mostly in the padding, or mostly where nothing is supervised, have weight 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from embedcache.geometry import IMAGE_SIZE, LOW_RES_SIZE, Tile

FloatArray = npt.NDArray[np.float32]

_CELL = IMAGE_SIZE // LOW_RES_SIZE


@lru_cache(maxsize=64)
def cell_coverage(length: int, frame_length: int) -> FloatArray:
    """How much of each cell each tile pixel covers, along one axis.

    Parameters
    ----------
    length : int
        Tile px along the axis.
    frame_length : int
        The same span in the 1024 frame.

    Returns
    -------
    float32 (256, length)
        Shares of a cell; a row sums to 1 inside the content and to 0 in the padding.
    """
    edges = np.arange(length + 1) * (frame_length / length)
    starts = np.arange(LOW_RES_SIZE)[:, None] * float(_CELL)
    overlap = np.minimum(edges[1:], starts + _CELL) - np.maximum(edges[:-1], starts)
    return np.asarray(np.clip(overlap, 0.0, None) / _CELL, dtype=np.float32)


def area_average(mask: npt.NDArray[np.bool_], tile: Tile) -> FloatArray:
    """Share of every cell that a mask covers: bool (height, width) in tile px to float32 (256, 256)."""
    height, width = tile.input_size
    if (height, width) == (
        IMAGE_SIZE,
        IMAGE_SIZE,
    ) and tile.height % LOW_RES_SIZE == 0 == tile.width % LOW_RES_SIZE:
        rows, columns = tile.height // LOW_RES_SIZE, tile.width // LOW_RES_SIZE
        cells = mask.reshape(LOW_RES_SIZE, rows, LOW_RES_SIZE, columns)
        return np.asarray(cells.mean(axis=(1, 3), dtype=np.float32))
    down = cell_coverage(tile.height, height)
    across = cell_coverage(tile.width, width)
    return np.asarray(down @ mask.astype(np.float32) @ across.T, dtype=np.float32)


def low_res_targets(
    masks: npt.NDArray[np.bool_], supervised: npt.NDArray[np.bool_], tile: Tile
) -> tuple[FloatArray, FloatArray]:
    """Targets and weights of a tile's objects.

    Parameters
    ----------
    masks : bool (P, height, width)
        Objects in tile px.
    supervised : bool (height, width)
        Where labels count.

    Returns
    -------
    targets : float32 (P, 256, 256)
        1 where at least half of a cell's supervised part belongs to the object, else 0.
    weight : float32 (256, 256)
        1 where at least half of a cell is content and supervised, else 0.
    """
    everywhere = bool(supervised.all())
    counted = area_average(supervised, tile)
    weight = (counted >= 0.5).astype(np.float32)
    targets = np.zeros((len(masks), LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
    for index, mask in enumerate(masks):
        share = area_average(mask if everywhere else mask & supervised, tile)
        targets[index] = (share >= 0.5 * np.maximum(counted, 1e-6)) & (counted > 0)
    return targets, weight
