"""Turns places into places: embedding shape, SAM's constants, ``Tile``, and the maps between frames.

Three frames of pixels are in use, all ``(x right, y down)``, with the origin at the top left corner:

* **volume px**: pixels of one plane of the encoded level of the volume;
* **tile px**: pixels of one tile, origin at the tile's ``(y0, x0)``;
* **the 1024 frame**: SAM's input, ``1024 × 1024``, into which the tile is scaled by its longer side and
  padded at the right and bottom. Prompts are given here.

A square has eight positions, and the encoder may have seen a tile in any of them: **view** ``v`` is the tile
mirrored left to right when ``v >= 4``, then turned by ``v % 4`` quarters counter-clockwise. View 0 is the tile
as it lies. A tile is *seen* after its view; :func:`see` and its kin move pixels, labels and prompts alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import InputError

EMBEDDING_SHAPE = (256, 64, 64)
"""Channels, height, width of one image embedding."""

EMBEDDING_VALUES = 256 * 64 * 64
"""Numbers in one image embedding (2 MiB as float16)."""

IMAGE_SIZE = 1024
"""Side of SAM's square input, in pixels of the 1024 frame."""

LOW_RES_SIZE = 256
"""Side of the mask decoder's output and of ``mask_input``; one of its pixels is 4 × 4 of the 1024 frame."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""SAM's mean of R, G, B, on the scale 0…255."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's standard deviation of R, G, B, on the scale 0…255."""

PLANES_PER_BLOCK = 64
"""Consecutive planes of one tile column that get consecutive tile numbers."""

VIEW_SETS: dict[str, tuple[int, ...]] = {
    "none": (0,),
    "flips": (0, 2, 4, 6),
    "d4": (0, 1, 2, 3, 4, 5, 6, 7),
}
"""Sets of views by name, view 0 first in each; flips: left to right, top to bottom, and both."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One piece of one plane: the unit that becomes one embedding.

    Parameters
    ----------
    plane : int
        Index of the plane (z of an array, row of the image table of a folder).
    y0, x0 : int
        Top left corner in volume px.
    height, width : int
        Size in volume px, before its view.
    view : int
        Which of the eight positions the encoder saw it in. The frames are those of the tile as seen.
    """

    plane: int
    y0: int
    x0: int
    height: int
    width: int
    view: int = 0

    @property
    def seen(self) -> Tile:
        """The tile as the encoder saw it, view 0: after an odd number of quarter turns height and width change."""
        if self.view == 0:
            return self
        height, width = _seen_size((self.height, self.width), self.view)
        return Tile(self.plane, self.y0, self.x0, height, width)

    @property
    def scale(self) -> float:
        """Pixels of the 1024 frame per volume px; follows from the longer side, as SAM does."""
        return IMAGE_SIZE / max(self.height, self.width)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the tile's content in the 1024 frame; the rest is padding."""
        seen = self.seen
        return scaled_size(seen.height, seen.width, IMAGE_SIZE)

    @property
    def low_res_size(self) -> tuple[int, int]:
        """Height and width of the tile's content in the 256 × 256 mask frame, rounded up."""
        height, width = self.input_size
        step = IMAGE_SIZE // LOW_RES_SIZE
        return -(-height // step), -(-width // step)

    @property
    def slices(self) -> tuple[slice, slice]:
        """``(rows, columns)`` of the tile in its plane, whatever its view."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)

    def to_frame(self, xy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Px ``(..., 2)`` of the tile as seen, (x, y), to the 1024 frame, by SAM's ``apply_coords`` rule."""
        seen = self.seen
        height, width = seen.input_size
        factors = np.array([width / seen.width, height / seen.height])
        frame: npt.NDArray[np.float32] = (np.asarray(xy, dtype=np.float64) * factors).astype(np.float32)
        return frame

    def from_frame(self, xy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The 1024 frame ``(..., 2)`` as (x, y) back to px of the tile as seen; undoes :meth:`to_frame`."""
        seen = self.seen
        height, width = seen.input_size
        factors = np.array([seen.width / width, seen.height / height])
        pixels: npt.NDArray[np.float32] = (np.asarray(xy, dtype=np.float64) * factors).astype(np.float32)
        return pixels

    def boxes_to_frame(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Boxes ``(..., 4)`` xyxy in px of the tile as seen to the 1024 frame."""
        array = np.asarray(boxes, dtype=np.float64)
        return self.to_frame(array.reshape(*array.shape[:-1], 2, 2)).reshape(array.shape)


def scaled_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Size after scaling the longer side to ``long_side``: SAM's ``get_preprocess_shape`` and its rounding."""
    scale = long_side * 1.0 / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def see(array: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """An array as it looks in a view.

    Parameters
    ----------
    array : ndarray (..., h, w)
        Pixels, labels or masks as they lie.
    view : int
        0 to 7.

    Returns
    -------
    ndarray (..., h, w) or (..., w, h)
        The same memory, not a copy.

    Raises
    ------
    InputError
        When there is no such view.
    """
    _check_view(view)
    mirrored = array[..., ::-1] if view >= 4 else array
    return np.rot90(mirrored, view % 4, axes=(-2, -1))


def unsee(array: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """The array ``(..., h, w)`` of which ``array`` is a view: the inverse of :func:`see`, no copy either."""
    _check_view(view)
    turned = np.rot90(array, -(view % 4), axes=(-2, -1))
    return turned[..., ::-1] if view >= 4 else turned


def see_points(xy: npt.ArrayLike, size: tuple[int, int], view: int) -> npt.NDArray[np.float64]:
    """Where a view puts pixels: ``see(a, view)[y', x'] == a[y, x]``.

    Parameters
    ----------
    xy : array-like (..., 2)
        Pixel indices (x, y) of an array as it lies.
    size : tuple of int
        Its height and width.
    view : int
        0 to 7.

    Returns
    -------
    float64 (..., 2)
        Pixel indices (x, y) of the array as seen.
    """
    return _moved(np.asarray(xy, dtype=np.float64), (size[0] - 1, size[1] - 1), view)


def see_boxes(xyxy: npt.ArrayLike, size: tuple[int, int], view: int) -> npt.NDArray[np.float64]:
    """Where a view puts boxes.

    Parameters
    ----------
    xyxy : array-like (..., 4)
        Edges x0, y0, x1, y1 in an array as it lies; the ends are exclusive.
    size : tuple of int
        Its height and width.
    view : int
        0 to 7.

    Returns
    -------
    float64 (..., 4)
        Edges in the array as seen, the smaller ones first again.
    """
    boxes = np.asarray(xyxy, dtype=np.float64)
    corners = _moved(boxes.reshape(*boxes.shape[:-1], 2, 2), size, view)
    return np.sort(corners, axis=-2).reshape(boxes.shape)


def _moved(xy: npt.NDArray[np.float64], last: tuple[int, int], view: int) -> npt.NDArray[np.float64]:
    """Points (x, y) between 0 and the ``last`` (y, x), moved by a view."""
    _check_view(view)
    x, y = xy[..., 0], xy[..., 1]
    last_y, last_x = last
    if view >= 4:
        x = last_x - x
    for _ in range(view % 4):
        x, y = y, last_x - x
        last_y, last_x = last_x, last_y
    return np.stack([x, y], axis=-1)


def _seen_size(size: tuple[int, int], view: int) -> tuple[int, int]:
    """Height and width after a view."""
    _check_view(view)
    return (size[1], size[0]) if view % 2 else size


def _check_view(view: int) -> None:
    if not 0 <= view < 8:
        raise InputError(f"There is no view {view}; a square has eight, 0 to 7.")
