"""Turns a folder of images, or one image, into a ``Volume``: a collection in which each plane has its own size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.files import sha256_file
from embedcache.volume.cache import BlockCache
from embedcache.volume.image_file import Head, read_head, read_pixels
from embedcache.volume.pieces import Piece
from embedcache.volume.volume import TIFF_SUFFIXES, ImageRecord, Volume


class ImageVolume(Volume):
    """Images of one data type, each with its own size; grey ones among colour ones are read as colour.

    Parameters
    ----------
    source : Path
        Folder or file as opened.
    entries : sequence of (Path, Head or None)
        Files in the order of the planes; None for a name that is not in the folder.
    """

    kind = "images"
    uniform = False

    def __init__(self, source: Path, entries: Sequence[tuple[Path, Head | None]]) -> None:
        self.source = str(source)
        self._entries = list(entries)
        self.cache = BlockCache()
        heads = [(path, head) for path, head in entries if head is not None]
        if not heads:
            raise VolumeError(f"{source} holds none of the {len(entries)} images that were asked for.")
        for path, head in heads:
            if head.dtype != heads[0][1].dtype:
                raise VolumeError(
                    f"{source}: {path.name} holds {head.dtype} pixels, {heads[0][0].name} {heads[0][1].dtype}; "
                    "the images of one volume must be of one type.",
                    hint="Put images of different types into folders of their own.",
                )
        self.dtype = np.dtype(heads[0][1].dtype)
        self.channels = max(head.channels for _, head in heads)
        self.n_planes = len(self._entries)

    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width of one image; VolumeError when its file is missing."""
        head = self._present(plane)
        return head.height, head.width

    def plane_name(self, plane: int) -> str:
        """File name of the image."""
        return self._entries[plane][0].name

    def read(self, plane: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Read a crop of one image; see :meth:`Volume.read`."""
        if 0 <= plane < self.n_planes:
            self._present(plane)
        y0, y1, x0, x1 = self._crop(plane, rows, columns)
        path = self._entries[plane][0]
        head = self._present(plane)
        whole = Piece(plane, plane + 1, 0, head.height, 0, head.width)
        pixels = self.cache.get(whole, lambda: _decode(path, head))
        crop = pixels[y0:y1, x0:x1]
        if self.channels == 3 and crop.ndim == 2:
            return np.repeat(crop[..., np.newaxis], 3, axis=2)
        return crop.copy()

    def header(self) -> dict[str, Any]:
        """Kind, dtype and channels; what tells the images apart is in their records."""
        return {"kind": self.kind, "dtype": self.dtype.name, "channels": self.channels}

    def image_record(self, plane: int) -> ImageRecord:
        """Name, size and digest of one image; reads the file's bytes once."""
        head = self._present(plane)
        path = self._entries[plane][0]
        return ImageRecord(path.name, head.height, head.width, sha256_file(path))

    def close(self) -> None:
        """Let go of the cached images."""
        self.cache.clear()

    def reordered(self, names: Sequence[str]) -> ImageVolume:
        """The same images with ``names`` first, in that order.

        Parameters
        ----------
        names : sequence of str
            File names. A name that the folder does not have stays as a plane that raises when it is read.

        Returns
        -------
        ImageVolume
            Plane ``i`` is ``names[i]``; images that are not listed come after, in natural order.
        """
        if len(set(names)) != len(names):
            raise VolumeError(f"{self.source}: the list of images names one of them twice.")
        here = {path.name: (path, head) for path, head in self._entries if head is not None}
        folder = Path(self.source) if Path(self.source).is_dir() else Path(self.source).parent
        listed: list[tuple[Path, Head | None]] = [here.get(name, (folder / name, None)) for name in names]
        rest = [entry for name, entry in here.items() if name not in set(names)]
        volume = ImageVolume(Path(self.source), [*listed, *rest])
        volume.cache.limit_bytes = self.cache.limit_bytes
        return volume

    def has(self, plane: int) -> bool:
        """Whether the image of a plane is in the folder (false only after :meth:`reordered`)."""
        return self._entries[plane][1] is not None

    def _present(self, plane: int) -> Head:
        path, head = self._entries[plane]
        if head is None:
            raise VolumeError(
                f"{path.name} is not in {path.parent}.",
                hint="It was there when it was encoded; put it back to read its pixels again.",
            )
        return head


def open_image(path: Path) -> ImageVolume:
    """Open one PNG or JPEG file as a collection of one plane."""
    return ImageVolume(path, [(path, read_head(path))])


def open_image_folder(folder: Path, files: Sequence[Path]) -> ImageVolume:
    """Open the PNG and JPEG files of a folder as a collection; only their heads are read."""
    return ImageVolume(folder, [(path, read_head(path)) for path in files])


def _decode(path: Path, head: Head) -> npt.NDArray[Any]:
    if path.name.lower().endswith(TIFF_SUFFIXES):
        from embedcache.volume.tiff_file import TiffFile

        pixels = TiffFile(path).read(0)
    else:
        pixels = read_pixels(path)
    if pixels.shape[:2] != (head.height, head.width):
        raise VolumeError(
            f"{path} is {pixels.shape[0]} × {pixels.shape[1]} pixels now; "
            f"it was {head.height} × {head.width} when it was opened."
        )
    return pixels
