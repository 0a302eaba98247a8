"""Turns the tags of one TIFF page into its head, and into how its pixels lie in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from embedcache.errors import VolumeError
from embedcache.volume.image_file import Head
from embedcache.volume.tiff_segments import Segments
from embedcache.volume.volume import check_dtype, to_pixels


def page_head(page: Any, path: Path) -> Head:
    """Head of one TIFF page."""
    axes, shape = page.axes, tuple(page.shape)
    if page.dtype is None or axes not in ("YX", "YXS", "SYX"):
        raise VolumeError(
            f"{path}: a page with axes {axes} and shape {shape} is not a plane of a volume.",
            hint="Save it as grey or RGB pages.",
        )
    height, width = (shape[1], shape[2]) if axes == "SYX" else (shape[0], shape[1])
    samples = 1 if axes == "YX" else shape[0] if axes == "SYX" else shape[2]
    if samples > 4:
        raise VolumeError(
            f"{path}: {samples} samples per pixel are neither grey nor colour.",
            hint="Write the channels that you need as grey planes.",
        )
    dtype = check_dtype(np.dtype(page.dtype), str(path))
    if is_palette(page):
        return Head(height, width, 3, "uint8")
    return Head(height, width, 3 if samples >= 3 else 1, dtype.name)


@dataclass(frozen=True)
class PagePlace:
    """How the pixels of one page lie in the file; neither as they are nor in segments: to be decoded whole.

    Parameters
    ----------
    mapped : (offset, dtype, shape), optional
        Where they lie as they are.
    segments : Segments, optional
        Its strips or tiles.
    inverted : bool
        Whether zero is white.
    """

    mapped: tuple[int, str, tuple[int, ...]] | None = None
    segments: Segments | None = None
    inverted: bool = False

    def finish(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Decoded values as pixels."""
        return finished(values, self.inverted)


def place_of(entry: Any, byteorder: str) -> PagePlace:
    """How the pixels of a page lie in a file of a byte order (``"<"`` or ``">"``)."""
    if entry.is_memmappable and entry.axes in ("YX", "YXS") and not (is_palette(entry) or is_inverted(entry)):
        dtype = np.dtype(entry.dtype).newbyteorder(byteorder).str
        return PagePlace((int(entry.dataoffsets[0]), dtype, tuple(entry.shape)))
    segments = None if is_palette(entry) else Segments.of(entry)
    return PagePlace(segments=segments, inverted=is_inverted(entry))


def finished(values: npt.NDArray[Any], inverted: bool) -> npt.NDArray[Any]:
    """Decoded values as pixels without transparency."""
    # Zero is white in inverted pages: turned so that bright is large, for booleans too.
    return to_pixels(_without_alpha(~values if inverted else values))


def is_palette(page: Any) -> bool:
    """Whether its values are numbers of colours."""
    return bool(page.photometric == tifffile.PHOTOMETRIC.PALETTE)


def is_inverted(page: Any) -> bool:
    """Whether zero is white."""
    return bool(page.photometric == tifffile.PHOTOMETRIC.MINISWHITE)


def _without_alpha(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Drop transparency: (h, w, 4) to 3 colours, (h, w, 2) and (h, w, 1) to grey."""
    if values.ndim == 2:
        return values
    return values[..., :3] if values.shape[-1] >= 3 else values[..., 0]
