"""Turns one PNG or JPEG file into its head (size, channels, type) and its pixels, without cutting bits.

Files are decoded by what their first bytes say, through Pillow's own readers rather than ``Image.open``:
that one warns of a "decompression bomb" above 89 megapixels, which photographs of fragments really have.
EXIF orientation is left alone: pixels are the stored ones, and so are the coordinates of labels drawn on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from embedcache.errors import VolumeError
from embedcache.volume.volume import DECODE_ERRORS, to_pixels, way_out

_BAND_PIXELS = 1 << 20
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I", "F")


@dataclass(frozen=True)
class Head:
    """What a file's first bytes tell about its pixels.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    channels : int
        1 or 3.
    dtype : str
        Name of the data type of the pixels, such as ``"uint8"``.
    """

    height: int
    width: int
    channels: int
    dtype: str


def read_head(path: Path) -> Head:
    """Head of a PNG or JPEG file; no pixels are decoded.

    Raises
    ------
    VolumeError
        When it is neither, is damaged, or has 16-bit colours, which Pillow would cut to 8 bits.
    """
    try:
        with path.open("rb") as stream:
            image = _open(stream, path)
            channels = 1 if _is_grey(image) else 3
            return Head(image.height, image.width, channels, _dtype(image))
    except DECODE_ERRORS as error:
        raise _damaged(path, error) from error


def read_pixels(path: Path) -> npt.NDArray[Any]:
    """All pixels of a PNG or JPEG file, ``(H, W)`` or ``(H, W, 3)``; transparency is dropped.

    Raises
    ------
    VolumeError
        As :func:`read_head`.
    """
    try:
        with path.open("rb") as stream:
            image = _open(stream, path)
            return to_pixels(_pixels(image))
    except DECODE_ERRORS as error:
        raise _damaged(path, error) from error


def pillow_pixels(image: ImageFile.ImageFile) -> npt.NDArray[Any]:
    """Pixels of an opened Pillow image under the same rules; for TIFF codecs that only Pillow has."""
    return to_pixels(_pixels(image))


def _open(stream: BinaryIO, path: Path) -> ImageFile.ImageFile:
    first = stream.read(26)
    stream.seek(0)
    if first.startswith(b"\x89PNG\r\n\x1a\n"):
        bits, colour_type = first[24], first[25]
        if bits == 16 and colour_type != 0:
            raise VolumeError(
                f"{path} has 16-bit colours or transparency; PNG files of 16 bits are read in grey only.",
                hint="Save it as TIFF, as 16-bit grey, or as 8-bit colour.",
            )
        return PngImagePlugin.PngImageFile(stream)
    if first.startswith(b"\xff\xd8"):
        return JpegImagePlugin.JpegImageFile(stream)
    raise VolumeError(f"{path} is neither PNG nor JPEG: it starts with {first[:8]!r}.")


def _is_grey(image: ImageFile.ImageFile) -> bool:
    if image.mode in _GREY_MODES:
        return True
    if image.mode not in ("P", "PA") or image.palette is None:
        return False
    order, data = image.palette.getdata()
    colours, step = np.frombuffer(bytes(data), dtype=np.uint8), len(order)
    colours = colours[: len(colours) // step * step].reshape(-1, step)
    return bool((colours[:, :3] == colours[:, :1]).all())


def _dtype(image: ImageFile.ImageFile) -> str:
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode == "I":
        # Pillow before 11 opens 16-bit grey PNG files as 32-bit integers.
        return "uint16" if isinstance(image, PngImagePlugin.PngImageFile) else "int32"
    return "float32" if image.mode == "F" else "uint8"


def _pixels(image: ImageFile.ImageFile) -> npt.NDArray[Any]:
    """All pixels. Pillow copies an image several times on its way to numpy; of bands, these copies are small."""
    grey, dtype = _is_grey(image), _dtype(image)
    height, width = image.height, image.width
    image.load()
    pixels = np.empty((height, width) if grey else (height, width, 3), np.dtype(dtype))
    band = max(1, _BAND_PIXELS // width)
    for top in range(0, height, band):
        bottom = min(top + band, height)
        pixels[top:bottom] = _band(image.crop((0, top, width, bottom)), grey)
    return pixels


def _band(image: Image.Image, grey: bool) -> npt.NDArray[Any]:
    if image.mode in ("I;16", "I;16B", "I", "F", "L"):
        return np.asarray(image)
    if not grey:
        return np.asarray(image.convert("RGB"))
    # A grey palette goes by way of RGB: a direct conversion to L would weigh and round the colours.
    if image.mode in ("P", "PA"):
        return np.asarray(image.convert("RGB"))[..., 0]
    return np.asarray(image.getchannel(0) if image.mode in ("LA", "La") else image.convert("L"))


def _damaged(path: Path, error: Exception) -> VolumeError:
    return VolumeError(
        f"{path} cannot be read as an image ({type(error).__name__}: {error}).",
        hint=way_out(error, "It is damaged or incomplete: fetch it again, or take it out of the folder."),
    )
