"""Turns a NRRD file, or the header of a detached one, into a ``Volume``: sizes (x, y, z) become planes (Z, Y, X).

Raw pixels are mapped; compressed ones have no places to jump to and are decoded once, into memory, when read.
"""

from __future__ import annotations

import bz2
import gzip
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.files import sha256_hex
from embedcache.volume.array_volume import ArrayVolume
from embedcache.volume.axes import axes_of
from embedcache.volume.nrrd_header import axis_names, dtype_of, voxel_size
from embedcache.volume.volume import DECODE_ERRORS, way_out

NRRD_SUFFIXES = (".nrrd", ".nhdr")

_SAVE = "If its header is right, save it anew as one raw NRRD, which is mapped: unu save -e raw -f nrrd."
_OPENERS: dict[str, Callable[..., Any]] = {
    "gzip": gzip.open,
    "gz": gzip.open,
    "bzip2": bz2.open,
    "bz2": bz2.open,
}


@dataclass(frozen=True)
class _Pixels:
    """Where the pixels of a NRRD lie.

    Parameters
    ----------
    path : Path
        Of the file that holds them.
    start : int
        Byte where they begin; of compressed ones, where the compressed bytes begin.
    skip : int
        Bytes of them to be skipped after decompression.
    encoding : str
        ``raw``, ``gzip``, ``bzip2`` and their short names.
    shape : tuple of int
        Slowest dimension first.
    dtype : numpy.dtype
        As stored.
    """

    path: Path
    start: int
    skip: int
    encoding: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Of all pixels, decompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self) -> npt.NDArray[Any]:
        """Raw pixels, as they lie in the file."""
        return np.memmap(self.path, self.dtype, "r", self.start, self.shape)

    def decoded(self) -> npt.NDArray[Any]:
        """Compressed pixels, all of them; never more bytes than the header says."""
        try:
            values = np.empty(self.shape, self.dtype)
        except (MemoryError, ValueError) as error:  # ValueError: more than an address can hold
            raise VolumeError(
                f"{self.path}: {self.nbytes:,} bytes of pixels, as its header says, do not fit into memory.",
                hint=_SAVE,
            ) from error
        with self.path.open("rb") as file:
            file.seek(self.start)
            with _OPENERS[self.encoding](file) as stream:
                left = self.skip
                while left and (skipped := stream.read(min(left, 1 << 20))):
                    left -= len(skipped)
                view, done = values.reshape(-1).view(np.uint8).data, 0
                while done < self.nbytes and (count := stream.readinto(view[done:])):
                    done += count
        if done < self.nbytes:
            raise EOFError(f"{done} of {self.nbytes} bytes of pixels are there")
        return values


def open_nrrd(path: Path) -> ArrayVolume:
    """Open ``.nrrd`` or ``.nhdr``; the header alone is read.

    Raises
    ------
    VolumeError
        When it is damaged, or of a kind that has no planes.
    """
    try:
        import nrrd
    except ImportError as error:
        raise VolumeError(
            f"{path}: reading NRRD needs pynrrd, which is not installed.",
            hint="Install it with: pip install 'embedcache[nrrd]'",
        ) from error
    try:
        with path.open("rb") as stream:
            header = dict(nrrd.read_header(stream))
            end = stream.tell()
            stream.seek(0)
            lines = stream.read(end).split(b"\n")
        pixels = _pixels_of(path, header, end)
    except (nrrd.NRRDError, StopIteration, *DECODE_ERRORS) as error:
        raise VolumeError(
            f"{path} is not a readable NRRD file ({type(error).__name__}: {error}).",
            hint=way_out(error, "It is damaged or incomplete: fetch it again."),
        ) from error
    names = axis_names(header)
    volume = ArrayVolume(
        str(path),
        "nrrd",
        _reader(pixels),
        dtype=pixels.dtype,
        axes=axes_of(pixels.shape, str(path), names[::-1]),
        # Without comments: writers put the time there.
        metadata_digest=sha256_hex(b"\n".join(line for line in lines if not line.startswith(b"#"))),
    )
    volume.voxel_size = voxel_size(header, names)
    return volume


def _reader(pixels: _Pixels) -> Callable[[tuple[int | slice, ...]], npt.NDArray[Any]]:
    """What reads a box; compressed pixels are decoded by the first that asks."""
    lock, kept = threading.Lock(), [] if pixels.encoding != "raw" else [pixels.mapped()]

    def get(index: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        with lock:
            if not kept:
                kept.append(pixels.decoded())
        # A copy, so that no crop keeps the whole file mapped.
        return np.array(kept[0][index])

    return get


def _pixels_of(path: Path, header: Mapping[str, Any], end: int) -> _Pixels:
    sizes = [int(size) for size in header["sizes"]]
    if len(sizes) != int(header["dimension"]) or min(sizes, default=0) < 1:
        raise ValueError(f"dimension {header['dimension']} and sizes {sizes} do not fit")
    encoding = str(header["encoding"]).lower()
    if encoding not in ("raw", *_OPENERS):
        raise _unsupported(path, f"its encoding is {encoding}; raw, gzip and bzip2 are read")
    named = header.get("data file", header.get("datafile"))
    if named is not None and (str(named).startswith("LIST") or "%" in str(named)):
        raise _unsupported(path, f"its pixels lie in several files ({named})")
    place = path if named is None else path.parent / str(named)
    lines = int(header.get("line skip", header.get("lineskip", 0)))
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if lines < 0 or skip < (-1 if encoding == "raw" else 0):
        raise _unsupported(path, f"its line skip is {lines}, its byte skip {skip}")
    dtype = dtype_of(header)
    if dtype is None:
        raise _unsupported(path, f"its pixels are of type {header['type']}")
    pixels = _Pixels(place, 0 if named else end, skip, encoding, tuple(sizes[::-1]), dtype)
    start = pixels.start + _bytes_of_lines(place, pixels.start, lines)
    there = place.stat().st_size
    if encoding == "raw":
        start, skip = (there - pixels.nbytes if skip == -1 else start + skip), 0
        if start < 0 or there - start < pixels.nbytes:
            raise EOFError(
                f"{place.name} has {there} bytes, {pixels.nbytes} of pixels are to start at byte {start}"
            )
    return _Pixels(place, start, skip, encoding, pixels.shape, pixels.dtype)


def _bytes_of_lines(path: Path, start: int, lines: int) -> int:
    with path.open("rb") as stream:
        stream.seek(start)
        for _ in range(lines):
            stream.readline()
        return stream.tell() - start


def _unsupported(path: Path, why: str) -> VolumeError:
    return VolumeError(
        f"{path} cannot be read: {why}.",
        hint="Save it anew as one raw or gzip NRRD: unu save -e raw -f nrrd.",
    )
