"""A ``Volume``: lazily read, ordered planes of pixels, whatever the format behind it.

Pixels are read by crop, one plane at a time, in the source's own data type;
intensity windows and colour recipes come later, in ``preprocess``.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.volume.cache import BlockCache
from embedcache.volume.pieces import PieceGrid, ReadPlan, SourceReads

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
DECODE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What decoding libraries raise for bytes that are not what they are called; each of these was met."""


@dataclass(frozen=True)
class ImageRecord:
    """What tells one image of a collection from all others.

    Parameters
    ----------
    name : str
        File name inside the folder.
    height, width : int
        Size in pixels.
    sha256 : str
        Digest of the file's bytes, 64 hex digits.
    """

    name: str
    height: int
    width: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageRecord:
        """From :meth:`to_dict`."""
        return cls(
            str(values["name"]), int(values["height"]), int(values["width"]), str(values["sha256"]).lower()
        )


class Volume(ABC):
    """A lazily read, ordered collection of planes.

    Reading is thread-safe. A volume is a context manager; closing it lets go of files and cached pixels.

    Attributes
    ----------
    source : str
        Absolute path as opened.
    kind : str
        ``"zarr"``, ``"tiff"``, ``"images"``, ``"npy"``, ``"hdf5"``, ``"nifti"`` or ``"nrrd"``.
    dtype : numpy.dtype
        Of the pixels as :meth:`read` returns them, in native byte order.
    channels : int
        1 (grey) or 3 (colour).
    n_planes : int
        Number of planes.
    level : int
        Pyramid level that was opened; 0 without a pyramid.
    uniform : bool
        True when it is one array (Z, Y, X); False for a collection of images, each of its own size.
    chunks : tuple of int or None
        Storage grid (z, y, x) of the source; None where any crop costs only its own bytes.
    pieces : PieceGrid or None
        In which pieces a uniform source is decoded and kept; None where nothing is.
    kept : PieceGrid or None
        The same grid with the parts of chunks that :meth:`expect` told to keep; None where each crop decides.
    scale : (float, float, float)
        Voxels of the base resolution per pixel of this level, z y x.
    voxel_size : (float, float, float) or None
        Micrometres at the BASE resolution, z y x; None where the source does not say.
    levels : tuple of tuple of int
        Shapes of the pyramid's levels, finest first; empty where they are not known.
    cache : BlockCache
        The decoded pixels that are kept.
    """

    source: str
    kind: str
    dtype: np.dtype[Any]
    channels: int
    n_planes: int
    level: int = 0
    uniform: bool = True
    chunks: tuple[int, int, int] | None = None
    pieces: PieceGrid | None = None
    kept: PieceGrid | None = None
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    voxel_size: tuple[float, float, float] | None = None
    levels: tuple[tuple[int, ...], ...] = ()
    cache: BlockCache

    @property
    def reads(self) -> SourceReads:
        """Chunks (strips, images) and bytes decoded since it was opened."""
        return self.cache.reads

    def expect(self, plan: ReadPlan | None) -> None:
        """Say what is going to be read, so that what is decoded is kept until its last use; None takes it back."""
        self.kept = None if plan is None else plan.grid
        self.cache.expect(None if plan is None else plan.uses)

    @abstractmethod
    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width of a plane, in volume px."""

    def plane_name(self, plane: int) -> str:
        """What people call the plane: ``"z=12"``, or the file name in a collection."""
        return f"z={plane}"

    @abstractmethod
    def read(self, plane: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Read a crop of one plane.

        Parameters
        ----------
        plane : int
            Index of the plane, ``0 <= plane < n_planes``.
        rows, columns : slice
            Crop in volume px, step 1, inside the plane.

        Returns
        -------
        ndarray (h, w) or (h, w, 3)
            In :attr:`dtype`.

        Raises
        ------
        VolumeError
            When the crop lies outside, or the source cannot be read there.
        """

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """What the volume's identity starts from, read without touching pixels (JSON values, no path)."""

    def image_record(self, plane: int) -> ImageRecord:
        """Name, size and digest of one image of a collection."""
        raise VolumeError(
            f"{self.source} is one array, not a collection of images: plane {plane} has no file of its own."
        )

    def close(self) -> None:  # noqa: B027 - most volumes hold nothing open
        """Let go of files and cached pixels."""

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _crop(self, plane: int, rows: slice, columns: slice) -> tuple[int, int, int, int]:
        """Check a crop and return it as ``(y0, y1, x0, x1)``."""
        if not 0 <= plane < self.n_planes:
            raise VolumeError(
                f"{self.source} has planes 0 to {self.n_planes - 1}; there is no plane {plane}."
            )
        height, width = self.plane_size(plane)
        y0, y1 = _bounds(rows, height)
        x0, x1 = _bounds(columns, width)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise VolumeError(
                f"{self.source}, {self.plane_name(plane)}: rows {y0}:{y1}, columns {x0}:{x1} lie outside "
                f"the plane of {height} × {width} pixels."
            )
        return y0, y1, x0, x1


def _bounds(part: slice, size: int) -> tuple[int, int]:
    if part.step not in (None, 1):
        raise VolumeError(f"Planes are read with step 1, not {part.step}.")
    start = 0 if part.start is None else int(part.start)
    stop = size if part.stop is None else int(part.stop)
    return start, stop


def way_out(error: Exception, otherwise: str) -> str:
    """Hint for a file that cannot be read: a refusal of the system is no damage of the file."""
    if isinstance(error, PermissionError):
        return "Check the owner and mode of the file and of the folders above it."
    return otherwise


def check_dtype(dtype: np.dtype[Any], source: str) -> np.dtype[Any]:
    """The native data type that pixels of ``dtype`` are read as; booleans are read as 0 and 255."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "uif":
        raise VolumeError(
            f"{source}: pixels are of type {dtype}; expected integers, floats or booleans.",
            hint="Convert the array to one of these types, for example the magnitude of complex numbers.",
        )
    return dtype.newbyteorder("=")


def to_pixels(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values as read from a file as pixels: native byte order, contiguous, booleans as 0 and 255."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
