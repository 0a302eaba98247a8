"""Turns TIFF files into a ``Volume``: a folder of slices in numeric order, or the pages of one file."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.files import digest_json
from embedcache.volume.cache import BlockCache
from embedcache.volume.crops import read_crop
from embedcache.volume.image_file import Head
from embedcache.volume.image_volume import ImageVolume
from embedcache.volume.pieces import Piece, PieceGrid
from embedcache.volume.tiff_file import TiffFile, head_of
from embedcache.volume.volume import Volume

ALL_FILES_CHECKED = 64
"""A longer folder of equally long files is opened by the heads of its first, middle and last file."""


class TiffVolume(Volume):
    """A uniform stack of TIFF pages.

    Parameters
    ----------
    source : Path
        File or folder as opened.
    files : sequence of Path
        The files in order.
    first : TiffFile
        The first of them, whose head all pages share.
    """

    kind = "tiff"

    def __init__(self, source: Path, files: Sequence[Path], first: TiffFile) -> None:
        self.source = str(source)
        self._paths, self._head = list(files), first.head
        self._files = {0: first}
        self._lock = threading.Lock()
        self.cache = BlockCache()
        self.dtype, self.channels = np.dtype(first.head.dtype), first.head.channels
        self.n_planes = first.n_pages if len(files) == 1 else len(files)
        self.chunks = (1, first.head.height, first.head.width)
        self._size = self.n_planes, first.head.height, first.head.width
        piece = first.piece_of(0)
        self.pieces = None if piece is None else self._grid(piece)

    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width, the same for all planes."""
        return self._head.height, self._head.width

    def read(self, plane: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Read a crop; see :meth:`Volume.read`."""
        y0, y1, x0, x1 = self._crop(plane, rows, columns)
        file, page = self._page(plane)
        if self.pieces is None and file.piece_of(page) is None:
            (direct,) = file.read_boxes(page, [Piece(plane, plane + 1, y0, y1, x0, x1)])
            self.cache.count(0, direct.nbytes)
            return direct
        return read_crop(
            self, self.pieces or self._grid(self._size[1:]), plane, (y0, y1), (x0, x1), self._decode
        )

    def header(self) -> dict[str, Any]:
        """Kind, shape, dtype, channels, level, chunk grid and a digest of the files' names and lengths."""
        files = [[path.name if len(self._paths) > 1 else "", path.stat().st_size] for path in self._paths]
        return {
            "kind": self.kind,
            "shape": [self.n_planes, self._head.height, self._head.width],
            "dtype": self.dtype.name,
            "channels": self.channels,
            "level": 0,
            "chunks": list(self.chunks or ()),
            "metadata": f"sha256:{digest_json(files)}",
        }

    def close(self) -> None:
        """Let go of the cached planes; files are open only while they are read."""
        self.cache.clear()

    def _decode(self, pieces: list[Piece]) -> list[npt.NDArray[Any]]:
        """Pieces of one plane."""
        file, page = self._page(pieces[0].z0)
        return [values[np.newaxis] for values in file.read_boxes(page, pieces)]

    def _grid(self, piece: tuple[int, int]) -> PieceGrid:
        return PieceGrid(self._size, (1, *piece), self.channels * self.dtype.itemsize)

    def _page(self, plane: int) -> tuple[TiffFile, int]:
        """The file that a plane lies in, and the page there."""
        return (self._file(0), plane) if len(self._paths) == 1 else (self._file(plane), 0)

    def _file(self, number: int) -> TiffFile:
        with self._lock:
            file = self._files.get(number)
        if file is None:
            file = TiffFile(self._paths[number])
            file.require(self._head, self._paths[0])
            with self._lock:
                self._files[number] = file
        return file


def open_tiff(path: Path) -> TiffVolume:
    """Open one TIFF file; each full-size page is a plane."""
    return TiffVolume(path, [path], TiffFile(path))


def open_tiff_folder(folder: Path, files: Sequence[Path]) -> Volume:
    """Open a folder of TIFF files, one plane each: a stack when all are alike, else a collection of images."""
    lengths = {path.stat().st_size for path in files}
    checked: Sequence[Path] = files
    if len(files) > ALL_FILES_CHECKED and len(lengths) == 1:
        checked = [files[0], files[len(files) // 2], files[-1]]
    heads: list[Head] = [head_of(path) for path in checked]
    if len(set(heads)) == 1:
        return TiffVolume(folder, files, TiffFile(files[0]))
    if len(heads) < len(files):
        heads = [head_of(path) for path in files]
    return ImageVolume(folder, list(zip(files, heads, strict=True)))
