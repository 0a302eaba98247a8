"""Turns a tile's labels into a table of its objects: numbered once, then looked up by number and box.

Components are those of the tile, not of the plane: an object that the tile's edge cuts in two is two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from embedcache.geometry import LOW_RES_SIZE, Tile, see

Masks = npt.NDArray[np.bool_]

MIN_PIXELS = 16
"""Objects smaller than this within a tile (cut off by its edge, or specks) are not asked for one by one."""


def least_pixels(tile: Tile) -> int:
    """Pixels of a tile's smallest object that is asked for: :data:`MIN_PIXELS`, and a cell of its targets."""
    cell = max(tile.height, tile.width) / LOW_RES_SIZE
    return max(MIN_PIXELS, math.ceil(cell**2))


_COUNTED_IDS = 2**20


@dataclass(frozen=True, eq=False)
class TileObject:
    """One object of a tile, as the piece of the tile that it lies in.

    Parameters
    ----------
    inside : bool (h, w)
        Its pixels.
    corner : tuple of int
        Row and column of the piece's top left corner.
    size : tuple of int
        Height and width of the tile.
    """

    inside: Masks
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def nothing(cls, size: tuple[int, int]) -> TileObject:
        """An object without pixels."""
        return cls(np.zeros((0, 0), np.bool_), (0, 0), size)

    @classmethod
    def of_mask(cls, mask: Masks) -> TileObject:
        """An object given as a mask of the whole tile, bool (height, width)."""
        return cls(mask, (0, 0), (mask.shape[0], mask.shape[1]))

    def seen(self, view: int) -> TileObject:
        """The same object in a view of the tile."""
        rows, columns = self.corner
        height, width = self.size
        h, w = self.inside.shape
        if view >= 4:
            columns = width - columns - w
        for _ in range(view % 4):  # a quarter counter-clockwise: the last column becomes the first row
            rows, columns = width - columns - w, rows
            (height, width), (h, w) = (width, height), (w, h)
        return TileObject(see(self.inside, view), (rows, columns), (height, width))

    def mask(self) -> Masks:
        """Its pixels in the whole tile, bool (height, width)."""
        mask = np.zeros(self.size, np.bool_)
        (y, x), (h, w) = self.corner, self.inside.shape
        mask[y : y + h, x : x + w] = self.inside
        return mask


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """The objects of a tile.

    Parameters
    ----------
    labels : integers (height, width)
        0: nothing; 1 to K: an object; K + 1: specks, which only the whole mask holds.
    boxes : tuple of (slice, slice)
        Rows and columns of each of the K objects.
    sizes : int64 (K,)
        Their pixels.
    """

    labels: npt.NDArray[Any]
    boxes: tuple[tuple[slice, slice], ...]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.boxes)

    def draw(self, limit: int, rng: np.random.Generator) -> list[TileObject]:
        """At most ``limit`` of the objects, drawn where there are more, in their order; never none.

        Where there are only specks, or nothing at all, it is the whole mask.
        """
        if len(self) == 0:
            return [self.whole()]
        numbers = np.arange(1, len(self) + 1)
        if len(numbers) > limit:
            numbers = np.sort(rng.choice(numbers, size=limit, replace=False))
        return [self.object(int(number)) for number in numbers]

    def object(self, number: int) -> TileObject:
        """Object 1 to K."""
        rows, columns = self.boxes[number - 1]
        height, width = self.labels.shape
        return TileObject(self.labels[rows, columns] == number, (rows.start, columns.start), (height, width))

    def whole(self) -> TileObject:
        """Everything positive."""
        return TileObject.of_mask(self.labels > 0)

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.labels.nbytes


def object_table(
    labels: npt.NDArray[Any],
    supervised: npt.NDArray[np.bool_] | None,
    objects: str,
    *,
    min_pixels: int = MIN_PIXELS,
) -> ObjectTable:
    """The table of a tile.

    Parameters
    ----------
    labels : bool or int (height, width)
    supervised : bool (height, width), optional
        Where they count; what lies outside is part of no object. Default: everywhere.
    objects : "whole", "components" or "ids"
        ``whole``: one object, if anything is positive.
    min_pixels : int
        Smaller objects count as specks; ``whole`` knows none.
    """
    inside = np.asarray(labels) if supervised is None else np.where(supervised, labels, 0)
    numbered: npt.NDArray[Any]
    if objects == "whole":
        numbered, count = (inside > 0).astype(np.uint8), 1
        sizes = np.array([np.count_nonzero(numbered)])
    elif objects == "components":
        numbered, count = ndimage.label(inside > 0)
        sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    else:
        numbered, sizes = _numbered(inside)
    large = sizes >= (1 if objects == "whole" else min_pixels)
    kept = int(large.sum())
    if not large.all():
        new = np.full(len(sizes) + 1, kept + 1, np.int64)
        new[0] = 0
        new[1:][large] = np.arange(1, kept + 1)
        numbered = new[numbered]
    found = ndimage.find_objects(numbered, max_label=kept) if kept else []
    small = numbered.astype(np.min_scalar_type(kept + 1))
    return ObjectTable(small, tuple(found), np.asarray(sizes[large], dtype=np.int64))


def _numbered(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Ids as 1, 2, … in their order, background 0; and the pixels of each."""
    ids = np.where(ids > 0, ids, 0)
    largest = int(ids.max(initial=0))
    if largest < _COUNTED_IDS:
        counts = np.bincount(ids.ravel(), minlength=largest + 1)
        counts[0] = 0
        present = counts > 0
        return (np.cumsum(present) * present)[ids], counts[present]
    values, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    first = int(values[0] > 0)
    return inverse.reshape(ids.shape) + first, counts if first else counts[1:]
