"""Turns places into places: embedding shape, SAM's constants, ``Tile``, and the maps between frames.

Three frames of pixels are in use, all ``(x right, y down)``, with the origin at the top left corner:

* **volume px**: pixels of one plane of the encoded level of the volume;
* **tile px**: pixels of one tile, origin at the tile's ``(y0, x0)``;
* **the 1024 frame**: SAM's input, ``1024 × 1024``, into which the tile is scaled by its longer side and
  padded at the right and bottom. Prompts are given here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
        Size in volume px.
    """

    plane: int
    y0: int
    x0: int
    height: int
    width: int

    @property
    def scale(self) -> float:
        """Pixels of the 1024 frame per volume px; follows from the longer side, as SAM does."""
        return IMAGE_SIZE / max(self.height, self.width)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the tile's content in the 1024 frame; the rest is padding."""
        return scaled_size(self.height, self.width, IMAGE_SIZE)

    @property
    def low_res_size(self) -> tuple[int, int]:
        """Height and width of the tile's content in the 256 × 256 mask frame, rounded up."""
        height, width = self.input_size
        step = IMAGE_SIZE // LOW_RES_SIZE
        return -(-height // step), -(-width // step)

    @property
    def slices(self) -> tuple[slice, slice]:
        """``(rows, columns)`` of the tile in its plane."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)

    def to_frame(self, xy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Tile px ``(..., 2)`` as (x, y) to the 1024 frame, by SAM's ``apply_coords`` rule."""
        height, width = self.input_size
        factors = np.array([width / self.width, height / self.height])
        frame: npt.NDArray[np.float32] = (np.asarray(xy, dtype=np.float64) * factors).astype(np.float32)
        return frame

    def from_frame(self, xy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The 1024 frame ``(..., 2)`` as (x, y) back to tile px; the inverse of :meth:`to_frame`."""
        height, width = self.input_size
        factors = np.array([self.width / width, self.height / height])
        pixels: npt.NDArray[np.float32] = (np.asarray(xy, dtype=np.float64) * factors).astype(np.float32)
        return pixels

    def boxes_to_frame(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Boxes ``(..., 4)`` xyxy in tile px to the 1024 frame."""
        array = np.asarray(boxes, dtype=np.float64)
        return self.to_frame(array.reshape(*array.shape[:-1], 2, 2)).reshape(array.shape)


def scaled_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Size after scaling the longer side to ``long_side``: SAM's ``get_preprocess_shape`` and its rounding."""
    scale = long_side * 1.0 / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)
