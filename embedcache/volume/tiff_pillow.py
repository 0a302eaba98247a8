"""Turns a page of a TIFF file into pixels through Pillow's libtiff, for codecs that tifffile lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from embedcache.volume.image_file import pillow_pixels


def page_by_pillow(path: Path, page: int) -> npt.NDArray[Any]:
    """All pixels of a page, as they are stored."""
    with path.open("rb") as stream:
        image = _StoredTiff(stream)
        image.seek(page)
        image.load()
        return np.asarray(image.convert("RGB")) if image.mode in ("P", "PA") else pillow_pixels(image)


class _StoredTiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader without its limit on size, and without turning the image by its orientation tag."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, getattr(self, "_tile_size", self.size)).im
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        self._size = self.im.size
