"""Turns pages of one TIFF file into heads and pixels: mapped when stored plainly, decoded otherwise.

tifffile reads what it has codecs for; LZW, JPEG and the like go through Pillow's libtiff when the
``imagecodecs`` package is not installed.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from embedcache.errors import VolumeError
from embedcache.volume.image_file import Head
from embedcache.volume.pieces import Piece
from embedcache.volume.tiff_page import PagePlace, finished, is_inverted, is_palette, page_head, place_of
from embedcache.volume.tiff_pillow import page_by_pillow
from embedcache.volume.tiff_segments import bundle
from embedcache.volume.volume import DECODE_ERRORS, way_out

TIFF_ERRORS = (*DECODE_ERRORS, tifffile.TiffFileError)

ALL_PAGES_CHECKED = 512
"""Up to so many pages are compared at opening; of more, the first, middle and last, and each when read."""

PAGES_REMEMBERED = 512
"""Pages of which the places of strips are remembered; blocks of 64 planes are read again and again."""


class TiffFile:
    """The full-size pages of one TIFF file, all of one size and type.

    Parameters
    ----------
    path : Path
        The file; it is closed again after each access.

    Attributes
    ----------
    head : Head
        Of every page.
    n_pages : int
        Number of full-size pages; reduced copies of a pyramid do not count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[int, PagePlace] = {}
        self._series: tuple[int, str, tuple[int, ...]] | None = None
        try:
            with self._opened() as tif:
                self._pages = self._full_pages(tif)
                self.head = page_head(tif.pages[self._pages[0]], path)
                self.n_pages = len(self._pages)
                self._check_equal(tif)
                if len(tif.pages) == 1:
                    self._find_hidden_planes(tif)
                self._check_whole(tif)
        except TIFF_ERRORS as error:
            raise _damaged(path, error) from error

    def read(self, page: int) -> npt.NDArray[Any]:
        """A whole page, ``(H, W)`` or ``(H, W, 3)``."""
        (whole,) = self.read_boxes(page, [Piece(page, page + 1, 0, self.head.height, 0, self.head.width)])
        return whole

    def read_boxes(self, page: int, boxes: Sequence[Piece]) -> list[npt.NDArray[Any]]:
        """Boxes of one page; strips and tiles that none of them touches are not decoded where that is possible."""
        try:
            place = self._place(page)
            if place.mapped is not None:
                return [finished(self._map(place.mapped)[_slices(box)], inverted=False) for box in boxes]
            if place.segments is None:
                decoded = self._decode(page)
                return [decoded if len(boxes) == 1 and decoded.shape[:2] == box.shape[1:]
                        else decoded[_slices(box)].copy() for box in boxes]  # fmt: skip
            with self.path.open("rb") as stream:
                return [place.finish(place.segments.read(stream, box)) for box in boxes]
        except TIFF_ERRORS as error:
            raise _damaged(self.path, error, page) from error

    def piece_of(self, page: int) -> tuple[int, int] | None:
        """Rows and columns in which a page is decoded; None where its pixels lie in the file as they are."""
        try:
            place = self._place(page)
        except TIFF_ERRORS as error:
            raise _damaged(self.path, error, page) from error
        if place.mapped is not None:
            return None
        size = self.head.height, self.head.width
        return size if place.segments is None else bundle(place.segments.side, size)

    def require(self, head: Head, first: Path) -> None:
        """Refuse the file when it is not one page like those of ``first``, as opening could not check all."""
        if self.n_pages != 1 or self.head != head:
            raise VolumeError(
                f"{self.path} has {self.n_pages} page(s) of {_in_words(self.head)}, "
                f"{first.name} one of {_in_words(head)}; the planes of one volume must be alike.",
                hint="Take it out of the folder, or put it right.",
            )

    def _opened(self) -> tifffile.TiffFile:
        try:
            return tifffile.TiffFile(self.path)
        except TIFF_ERRORS as error:
            raise _damaged(self.path, error) from error

    def _full_pages(self, tif: tifffile.TiffFile) -> list[int]:
        count = len(tif.pages)
        if count > ALL_PAGES_CHECKED:
            return list(range(count))
        return [index for index in range(count) if index == 0 or not page_of(tif, index).is_reduced]

    def _check_equal(self, tif: tifffile.TiffFile) -> None:
        known = self._pages
        if self.n_pages > ALL_PAGES_CHECKED:
            known = [known[0], known[self.n_pages // 2], known[-1]]
        for index in known:
            self._check_page(tif.pages[index], index)

    def _check_page(self, page: Any, index: int) -> None:
        head = page_head(page, self.path)
        if head != self.head:
            raise VolumeError(
                f"{self.path}: page {index} is {_in_words(head)}, page 0 is {_in_words(self.head)}; "
                "the pages of one volume must be alike.",
                hint="Save the pages as single files into a folder; there, sizes may differ.",
            )

    def _check_whole(self, tif: tifffile.TiffFile) -> None:
        """Refuse a file that was cut short: tifffile opens one as a stack of the pages that are left."""
        following = _next_page(tif)
        if following and following not in {page.offset for page in tif.pages}:
            raise VolumeError(
                f"{self.path} is cut short or damaged: after {len(tif.pages)} page(s) it names one at byte "
                f"{following}, where none is (the file has {tif.filehandle.size} bytes).",
                hint="Fetch the file again.",
            )
        said = (tif.imagej_metadata or {}).get("images", 1) if tif.is_imagej else 1
        if said > self.n_pages:
            raise VolumeError(
                f"{self.path} is cut short: it says that it has {said} planes, and {self.n_pages} can be read.",
                hint="Fetch the file again.",
            )

    def _find_hidden_planes(self, tif: tifffile.TiffFile) -> None:
        """ImageJ and tifffile write large stacks with one page entry; the other planes follow it in the file."""
        if not (tif.is_imagej or tif.is_shaped):
            return
        series = tif.series[0]
        shape = tuple(int(length) for length in series.shape)
        page = tif.pages[0]
        if series.dataoffset is None or len(shape) <= len(page.shape) or page.dtype is None:
            return
        planes = int(np.prod(shape[: len(shape) - len(page.shape)]))
        if planes > 1 and shape[-len(page.shape) :] == tuple(page.shape):
            dtype = np.dtype(page.dtype).newbyteorder(tif.byteorder)
            self._series = int(series.dataoffset), dtype.str, (planes, *page.shape)
            self.n_pages = planes

    def _place(self, page: int) -> PagePlace:
        """How the pixels of a page lie in the file; remembered for the last few hundred pages."""
        if self._series is not None:
            offset, dtype, shape = self._series
            bytes_before = page * int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
            return PagePlace((offset + bytes_before, dtype, shape[1:]))
        with self._lock:
            place = self._places.get(page)
            if place is None:
                with self._opened() as tif:
                    entry = page_of(tif, self._pages[page])
                    self._check_page(entry, page)
                    place = self._places[page] = place_of(entry, tif.byteorder)
                if len(self._places) > PAGES_REMEMBERED:
                    del self._places[next(iter(self._places))]
        return place

    def _map(self, mapped: tuple[int, str, tuple[int, ...]]) -> npt.NDArray[Any]:
        offset, dtype, shape = mapped
        return np.memmap(self.path, dtype, "r", offset, shape)

    def _decode(self, page: int) -> npt.NDArray[Any]:
        with self._opened() as tif:
            entry = page_of(tif, self._pages[page])
            try:
                if is_palette(entry):
                    return self._decode_by_pillow(page)
                values = np.asarray(entry.asarray(maxworkers=1))
            except TIFF_ERRORS as error:
                return self._decode_by_pillow(page, error)
            if entry.axes == "SYX":
                values = np.moveaxis(values, 0, -1)
            return finished(values, is_inverted(entry))

    def _decode_by_pillow(self, page: int, first_error: Exception | None = None) -> npt.NDArray[Any]:
        try:
            values = page_by_pillow(self.path, self._pages[page])
        except TIFF_ERRORS as error:
            raise first_error or error from error
        if values.dtype != self.head.dtype:
            raise first_error or ValueError(f"decoded as {values.dtype}, not {self.head.dtype}")
        return values


def _slices(box: Piece) -> tuple[slice, slice]:
    return slice(box.y0, box.y1), slice(box.x0, box.x1)


def _next_page(tif: tifffile.TiffFile) -> int:
    """Offset of the page that the last page names as following it; 0 in a file that is whole."""
    form, stream = tif.tiff, tif.filehandle
    stream.seek(tif.pages[-1].offset)
    (tags,) = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))
    stream.seek(tags * form.tagsize, os.SEEK_CUR)
    (following,) = struct.unpack(form.offsetformat, stream.read(form.offsetsize))
    return int(following)


def page_of(tif: tifffile.TiffFile, index: int) -> Any:
    """One page with all its tags."""
    return tif.pages[index]


def head_of(path: Path) -> Head:
    """Head of a file of one page; several full-size pages in one file of a folder are refused."""
    file = TiffFile(path)
    if file.n_pages != 1:
        raise VolumeError(
            f"{path} has {file.n_pages} pages: in a folder, each TIFF file is one plane.",
            hint=f"Open that file alone, as --volume {path}.",
        )
    return file.head


def _in_words(head: Head) -> str:
    return f"{head.height} × {head.width} {'colour' if head.channels == 3 else 'grey'} {head.dtype}"


def _damaged(path: Path, error: Exception, page: int | None = None) -> VolumeError:
    where = str(path) if page is None else f"{path}, page {page}"
    damaged = "The file is damaged or incomplete: fetch it again."
    codec = "Install the codecs with: pip install imagecodecs"
    return VolumeError(
        f"{where} cannot be read as TIFF ({type(error).__name__}: {error}).",
        hint=way_out(error, codec if "imagecodecs" in str(error) else damaged),
    )
