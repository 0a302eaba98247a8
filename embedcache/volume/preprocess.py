"""Turns the pixels of a tile into SAM's input: colour recipe, window, scale, mean and deviation, padding.

The intensity window is resolved once for a volume and never per plane or tile, so that contrast does not jump at
seams. 8-bit images with their own range take the way of SAM's predictor exactly, rounding included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.geometry import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, Tile, scaled_size, see
from embedcache.volume.channels import (
    canonical,
    depth_ranges,
    read_colours,
    resolve_channels,
    tile_planes,
)
from embedcache.volume.volume import Volume

UINT8_WINDOW = (0.0, 255.0)


@dataclass(frozen=True)
class Preprocess:
    """How pixels become model input; part of a store's identity.

    Parameters
    ----------
    channels : str
        ``"repeat"``, ``"rgb"``, ``"adjacent:STEP"``, ``"random:N:SEED"`` (N composites of three planes each) or
        ``"depth:A-B,C-D,E-F"`` (plane ranges, ends included).
    window : tuple of float
        Pixels are mapped linearly from ``window`` to 0…255 and clipped.
    revision : int
        Changes whenever the same settings give other input.
    """

    channels: str
    window: tuple[float, float] = UINT8_WINDOW
    revision: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", canonical(self.channels))
        low, high = (
            float(self.window[0]) + 0.0,
            float(self.window[1]) + 0.0,
        )  # -0.0 is 0.0 in a fingerprint too
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise VolumeError(f"--window {low}:{high}: expected two finite numbers, the smaller one first.")
        object.__setattr__(self, "window", (low, high))
        if self.revision != 1:
            raise VolumeError(f"Preprocessing revision {self.revision} is unknown here; expected 1.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"channels": self.channels, "window": list(self.window), "revision": self.revision}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """From :meth:`to_dict`."""
        low, high = values["window"]
        return cls(str(values["channels"]), (float(low), float(high)), int(values.get("revision", 1)))

    @property
    def depth_ranges(self) -> tuple[tuple[int, int], ...]:
        """Plane ranges of the depth recipe, ends included; empty for the others."""
        return depth_ranges(self.channels)

    def tile_planes(self, planes: int) -> int:
        """Planes to encode of a source of so many: its own, or the composites of depth and random."""
        return tile_planes(self.channels, planes)

    def n_planes(self, volume: Volume) -> int:
        """Planes to encode of a volume; see :meth:`tile_planes`."""
        return self.tile_planes(volume.n_planes)

    def read(self, volume: Volume, tile: Tile) -> npt.NDArray[Any]:
        """Read a tile's pixels in the source's data type, before the window, in the view of the tile.

        Returns
        -------
        ndarray (h, w) or (h, w, 3)
            Of the tile as seen. Float32 for the depth recipe, whose colours are means over planes.
        """
        pixels = self._read(volume, tile)
        if tile.view == 0:
            return pixels
        if pixels.ndim == 2:
            return np.ascontiguousarray(see(pixels, tile.view))
        return np.ascontiguousarray(np.moveaxis(see(np.moveaxis(pixels, -1, 0), tile.view), 0, -1))

    def _read(self, volume: Volume, tile: Tile) -> npt.NDArray[Any]:
        """The pixels as they lie."""
        return read_colours(self.channels, volume, tile.plane, *tile.slices)

    def to_input(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Pixels of a tile as SAM's input.

        Parameters
        ----------
        pixels : ndarray (h, w) or (h, w, 3)
            As :meth:`read` returns them.

        Returns
        -------
        ndarray (3, 1024, 1024), float32
            Scaled by the longer side, normalised, then padded with zeros at the bottom and right. NaN stays NaN.
        """
        scaled = self.to_scaled(pixels)
        if scaled.dtype != np.float32 and not self.keeps(scaled.dtype == np.uint8):
            scaled = windowed(scaled, self.window)
        _, height, width = scaled.shape
        out = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
        out[:, :height, :width] = (scaled.astype(np.float32) - mean) / std
        return out

    def to_scaled(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The host's share of :meth:`to_input`: what a device then normalises and pads.

        Parameters
        ----------
        pixels : ndarray (h, w) or (h, w, 3)
            As :meth:`read` returns them.

        Returns
        -------
        ndarray (1 or 3, h, w), uint8, uint16 or float32
            Scaled by the longer side to 1024. Float32 values have been through the window, integers not.
        """
        height, width = scaled_size(pixels.shape[0], pixels.shape[1], IMAGE_SIZE)
        if height == 0 or width == 0:
            raise VolumeError(
                f"A tile of {pixels.shape[0]} × {pixels.shape[1]} pixels is too narrow: nothing of it is left "
                f"at {IMAGE_SIZE} pixels.",
                hint="Choose a smaller --tile.",
            )
        planes = pixels[np.newaxis] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if (height, width) == planes.shape[1:]:
            early = planes.dtype in (np.uint8, np.uint16)
            return np.ascontiguousarray(planes if early else windowed(planes, self.window))
        if not self.keeps(pixels.dtype == np.uint8):
            planes = windowed(planes, self.window)
        # PIL resizes each band by itself, in 8 bits with rounding or as float32: SAM's own way.
        bands = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]
        return np.stack(
            [np.asarray(band.resize((width, height), Image.Resampling.BILINEAR)) for band in bands]
        )

    def keeps(self, eight_bit: bool) -> bool:
        """Whether the window leaves pixels of that kind as they are, so that they take SAM's way exactly."""
        return eight_bit and self.window == UINT8_WINDOW

    def to_image(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Pixels of a tile as a picture ``(h, w, 3)`` at the tile's own size; NaN becomes 0."""
        planes = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        if not self.keeps(pixels.dtype == np.uint8):
            planes = np.nan_to_num(windowed(planes, self.window), nan=0.0)
            planes = np.floor(planes + np.float32(0.5)).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def resolve_preprocess(
    volume: Volume, *, channels: str | None = None, window: str | None = None, recipe_from: str = ""
) -> Preprocess:
    """Settle colours and intensity window for a volume, once.

    Parameters
    ----------
    volume : Volume
        Its dtype and channels decide the defaults; a percentile window reads a fixed sample of it.
    channels : str, optional
        See :class:`Preprocess`; by default ``"rgb"`` for colour and ``"repeat"`` for grey.
    window : str, optional
        See :func:`embedcache.volume.window.resolve_window`; by default ``"dtype"`` for 8-bit pixels, else
        ``"p1:p99"``.
    recipe_from : str
        The store or checkpoint whose recipe ``channels`` is; empty: the user's own wish.

    Raises
    ------
    VolumeError
        When the recipe does not fit the volume, or no window can be found.
    """
    from embedcache.volume.window import resolve_window

    return Preprocess(resolve_channels(volume, channels, recipe_from), resolve_window(volume, window))


def windowed(pixels: npt.NDArray[Any], window: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Map the window to 0…255 and clip, in float32 where that holds the source's values exactly."""
    wide = pixels.dtype.itemsize > 4 or (pixels.dtype.itemsize == 4 and pixels.dtype.kind != "f")
    values: npt.NDArray[Any] = pixels.astype(np.float64 if wide else np.float32)
    low, high = window
    values -= values.dtype.type(low)
    values *= values.dtype.type(255.0 / (high - low))
    mapped: npt.NDArray[np.float32] = np.clip(values, 0.0, 255.0).astype(np.float32)
    return mapped
