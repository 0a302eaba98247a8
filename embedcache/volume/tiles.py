"""Turns the size of a volume into numbered tiles: where each lies, and in which order they are stored.

Numbers of a uniform volume run by blocks of 64 planes; in a block, by tile column (y, then x); in a column, by
plane. 64 consecutive numbers are thus 64 planes of one column, which share the source's chunks. Collections are
numbered image by image, row by row, so that adding images keeps the numbers of those before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.geometry import PLANES_PER_BLOCK

FULL = "full"


@dataclass(frozen=True)
class TileGrid:
    """The rule that cuts planes into tiles.

    Parameters
    ----------
    tile : int or None
        Side of a tile in volume px; None for the whole plane as one tile.
    overlap : int
        Pixels that neighbouring tiles share at least; smaller than ``tile``.
    """

    tile: int | None = 1024
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise VolumeError(f"--tile {self.tile}: expected a number of pixels above 0, or '{FULL}'.")
        if self.tile is None and self.overlap:
            raise VolumeError(f"--overlap {self.overlap} with --tile {FULL}: whole planes do not overlap.")
        if self.overlap < 0 or (self.tile is not None and self.overlap >= self.tile):
            raise VolumeError(
                f"--overlap {self.overlap}: expected 0 to {(self.tile or 1) - 1}, less than the tile."
            )

    def rule(self) -> dict[str, Any]:
        """The rule as JSON values, for the specification of a store."""
        tile = FULL if self.tile is None else self.tile
        return {"tile": tile, "overlap": self.overlap, "planes_per_block": PLANES_PER_BLOCK}

    @classmethod
    def from_rule(cls, rule: Mapping[str, Any]) -> TileGrid:
        """From :meth:`rule`."""
        block = rule.get("planes_per_block", PLANES_PER_BLOCK)
        if block != PLANES_PER_BLOCK:
            raise VolumeError(
                f"Tiles numbered in blocks of {block} planes are unknown; expected {PLANES_PER_BLOCK}."
            )
        return cls(None if rule["tile"] == FULL else int(rule["tile"]), int(rule.get("overlap", 0)))

    @classmethod
    def parse(cls, tile: str | int | None, overlap: int = 0) -> TileGrid:
        """From what a person writes: ``1024``, ``"1024"`` or ``"full"``."""
        if tile is None or str(tile).strip().lower() == FULL:
            return cls(None, overlap)
        try:
            return cls(int(str(tile).strip()), overlap)
        except ValueError:
            raise VolumeError(f"--tile {tile}: expected a number of pixels, or '{FULL}'.") from None

    def count(self, height: int, width: int) -> int:
        """Tiles of one plane, by arithmetic alone: no memory is taken for planes that are merely claimed."""
        return self._count(height) * self._count(width)

    def _count(self, size: int) -> int:
        if size < 1:
            raise VolumeError(f"A plane of {size} pixels along one side has no tiles.")
        if self.tile is None or size <= self.tile:
            return 1
        return -(-(size - self.tile) // (self.tile - self.overlap)) + 1

    def boxes(self, height: int, width: int) -> npt.NDArray[np.int64]:
        """Tiles of one plane, ``(n, 4)`` as y0, x0, height, width, row by row."""
        y0, h = self._cuts(height)
        x0, w = self._cuts(width)
        grid = np.empty((len(y0), len(x0), 4), np.int64)
        grid[..., 0], grid[..., 1] = y0[:, np.newaxis], x0[np.newaxis]
        grid[..., 2], grid[..., 3] = h, w
        return grid.reshape(-1, 4)

    def table(self, sizes: Sequence[tuple[int, int]], *, uniform: bool) -> npt.NDArray[np.int64]:
        """All tiles by number, ``(N, 5)`` as plane, y0, x0, height, width; −1 where a number has no tile.

        Parameters
        ----------
        sizes : sequence of (height, width)
            One per plane.
        uniform : bool
            Whether the planes are one array; then all sizes must be equal.
        """
        if not uniform:
            return self.table_images(sizes)
        if len(set(sizes)) > 1:
            raise VolumeError(f"A uniform volume has planes of one size, not of {len(set(sizes))}.")
        return self.table_uniform(len(sizes), *sizes[0]) if len(sizes) else _empty()

    def table_uniform(self, n_planes: int, height: int, width: int) -> npt.NDArray[np.int64]:
        """:meth:`table` of ``n_planes`` planes of one size; N is a multiple of 64."""
        boxes = self.boxes(height, width)
        blocks = -(-n_planes // PLANES_PER_BLOCK)
        table = np.empty((blocks, len(boxes), PLANES_PER_BLOCK, 5), np.int64)
        planes = np.arange(blocks * PLANES_PER_BLOCK).reshape(blocks, 1, PLANES_PER_BLOCK)
        table[..., 0] = planes
        table[..., 1:] = boxes[np.newaxis, :, np.newaxis]
        if n_planes % PLANES_PER_BLOCK:
            table[-1, :, n_planes % PLANES_PER_BLOCK :] = -1
        return table.reshape(-1, 5)

    def table_images(self, sizes: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
        """:meth:`table` of a collection: image by image, row by row, every number a tile."""
        parts = []
        for plane, (height, width) in enumerate(sizes):
            boxes = self.boxes(height, width)
            parts.append(np.concatenate([np.full((len(boxes), 1), plane, np.int64), boxes], axis=1))
        return np.concatenate(parts) if parts else _empty()

    def _cuts(self, size: int) -> tuple[npt.NDArray[np.int64], int]:
        """Starts of the tiles along one axis, and their length; the last one shifts inward."""
        if size < 1:
            raise VolumeError(f"A plane of {size} pixels along one side has no tiles.")
        if self.tile is None or size <= self.tile:
            return np.zeros(1, np.int64), size
        last = size - self.tile
        starts = np.arange(0, last, self.tile - self.overlap, dtype=np.int64)
        return np.append(starts, last), self.tile


def _empty() -> npt.NDArray[np.int64]:
    return np.empty((0, 5), np.int64)
