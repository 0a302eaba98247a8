"""Turns the strips or tiles of one TIFF page into boxes of its pixels: a crop decodes only what it touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tifffile.tifffile import TIFF

from embedcache.volume.pieces import Piece

LEAST_SIDE = 128
"""Smaller strips and tiles are read in bundles of at least so many pixels, for each costs some microseconds."""

_JPEG = (6, 7, 34892, 33007)


@dataclass(frozen=True)
class Segments:
    """Strips or tiles of one page.

    Parameters
    ----------
    size : tuple of int
        Height and width of the page.
    side : tuple of int
        Rows and columns of a segment.
    samples : int
        Values per pixel; 1 for grey.
    dtype : numpy.dtype
        Of the decoded values, in native byte order.
    places : tuple of (int, int)
        Offset and length in the file of each segment, row by row.
    decode : callable
        As ``tifffile.TiffPage.decode``.
    empty : int or float
        Value of a segment that is not in the file.
    """

    size: tuple[int, int]
    side: tuple[int, int]
    samples: int
    dtype: np.dtype[Any]
    places: tuple[tuple[int, int], ...]
    decode: Callable[..., Any]
    empty: float

    @classmethod
    def of(cls, page: Any) -> Segments | None:
        """Of a page; None where its strips cannot be decoded one by one by tifffile."""
        side = segment_side(page)
        if side is None:
            return None
        frame = page.keyframe
        keywords: dict[str, Any] = {"_fullsize": False}
        if frame.compression in _JPEG:
            keywords |= {"jpegtables": page.jpegtables, "jpegheader": frame.jpegheader}
        decoder = frame.decode
        return cls(
            (frame.imagelength, frame.imagewidth),
            side,
            frame.samplesperpixel,
            np.dtype(frame.dtype).newbyteorder("="),
            tuple(zip(page.dataoffsets, page.databytecounts, strict=True)),
            lambda data, number: decoder(data, number, **keywords),
            frame.nodata,
        )

    def read(self, stream: BinaryIO, box: Piece) -> npt.NDArray[Any]:
        """A box of the page, ``(h, w)`` or ``(h, w, samples)``; its planes are not looked at."""
        rows, columns = self.side
        in_a_row = -(-self.size[1] // columns)
        out = np.empty((box.y1 - box.y0, box.x1 - box.x0, self.samples), self.dtype)
        for y in range(box.y0 // rows, -(-box.y1 // rows)):
            for x in range(box.x0 // columns, -(-box.x1 // columns)):
                self._paste(stream, y * in_a_row + x, (y * rows, x * columns), out, box)
        return out[..., 0] if self.samples == 1 else out

    def _paste(
        self, stream: BinaryIO, number: int, corner: tuple[int, int], out: npt.NDArray[Any], box: Piece
    ) -> None:
        offset, length = self.places[number]
        top, left = max(corner[0], box.y0), max(corner[1], box.x0)
        bottom = min(corner[0] + self.side[0], self.size[0], box.y1)
        right = min(corner[1] + self.side[1], self.size[1], box.x1)
        place = np.s_[top - box.y0 : bottom - box.y0, left - box.x0 : right - box.x0]
        values = None
        if length:
            stream.seek(offset)
            values = self.decode(stream.read(length), number)[0]
        if values is None:
            out[place] = self.empty
        else:
            out[place] = values[0, top - corner[0] : bottom - corner[0], left - corner[1] : right - corner[1]]


def segment_side(page: Any) -> tuple[int, int] | None:
    """Rows and columns of a page's strips or tiles; None where it must be decoded as a whole."""
    frame = page.keyframe
    rows, columns = (
        (frame.tilelength, frame.tilewidth) if frame.is_tiled else (frame.rowsperstrip, frame.imagewidth)
    )
    count = -(-frame.imagelength // max(rows, 1)) * -(-frame.imagewidth // max(columns, 1))
    plain = frame.axes in ("YX", "YXS") and frame.imagedepth == 1 and frame.planarconfig != 2
    stripes_as_tiles = frame.is_tiled and 273 in frame.tags  # some scanners' JPEG
    if not plain or frame.is_contiguous or stripes_as_tiles or count < 2 or len(page.dataoffsets) != count:
        return None
    if frame.compression != 1 and not _known(TIFF.DECOMPRESSORS, frame.compression):
        return None
    if frame.predictor != 1 and not _known(TIFF.UNPREDICTORS, frame.predictor):
        return None
    return int(rows), int(columns)


def bundle(side: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the segments that are read together, within a page of a size."""
    rows, columns = (length * max(1, -(-LEAST_SIDE // length)) for length in side)
    return min(rows, size[0]), min(columns, size[1])


def _known(codecs: Any, number: int) -> bool:
    try:
        codecs[number]
    except (KeyError, ImportError):
        return False
    return True
