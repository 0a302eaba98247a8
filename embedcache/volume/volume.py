"""Turns a path into a ``Volume``: lazily read, ordered planes of pixels, whatever the format behind it.

Opening reads metadata only. Pixels are read by crop, one plane at a time, in the source's own data type;
intensity windows and colour recipes come later, in ``preprocess``.
"""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import EmbedcacheError, VolumeError
from embedcache.volume.cache import CACHE_BYTES, BlockCache
from embedcache.volume.pieces import PieceGrid, ReadPlan, SourceReads

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
KNOWN_FORMATS = (
    "OME-Zarr or Zarr (folder), TIFF, PNG or JPEG (file or folder), .npy, FILE.h5:DATASET, .nii, .nii.gz"
)

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
        ``"zarr"``, ``"tiff"``, ``"images"``, ``"npy"``, ``"hdf5"`` or ``"nifti"``.
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


def open_volume(path: str | Path, *, level: int = 0, read_memory: int = CACHE_BYTES) -> Volume:
    """Open a volume lazily; the format follows from what lies at ``path``.

    Parameters
    ----------
    path : str or Path
        An OME-Zarr group, a Zarr array, a TIFF file or folder of them, a PNG or JPEG file or folder of them,
        ``.npy``, ``FILE.h5:DATASET``, ``.nii`` or ``.nii.gz``.
    level : int
        Pyramid level of an OME-Zarr group; 0 is the finest.
    read_memory : int
        Bytes of decoded pixels that are kept at most.

    Returns
    -------
    Volume

    Raises
    ------
    VolumeError
        When nothing is there, the format is unknown, it is damaged or may not be read, or the level does not
        exist.
    """
    # The readers are imported late: whoever opens a PNG need not load zarr, h5py and nibabel.
    text = _local(str(path))
    try:
        volume = _open(text, level)
        volume.cache.limit_bytes = read_memory
        return volume
    except (EmbedcacheError, ImportError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything at all for damaged files, some errors of their own
        raise VolumeError(
            f"{text} cannot be opened ({type(error).__name__}: {error}).",
            hint=way_out(error, "It is damaged, incomplete or not what its name says: fetch it again."),
        ) from error


def _open(text: str, level: int) -> Volume:
    if not text:
        raise VolumeError("The path of the volume is empty.", hint=f"Formats that open: {KNOWN_FORMATS}.")
    if level < 0:
        raise VolumeError(f"--level {level}: levels count from 0, the finest.")
    if not _is_hdf5(text) and not Path(text).exists():
        raise VolumeError(
            f"{text} does not exist.",
            hint=_nearest(Path(text)),
        )
    if not _is_hdf5(text) and Path(text).is_dir():
        return _open_folder(Path(text).absolute(), level)
    volume = _open_file(text)
    if level:
        volume.close()
        raise VolumeError(f"{text} has no pyramid: only level 0 is there, not level {level}.")
    return volume


def _open_folder(folder: Path, level: int) -> Volume:
    from embedcache.volume.folder import files_with
    from embedcache.volume.image_volume import open_image_folder
    from embedcache.volume.tiff_volume import open_tiff_folder
    from embedcache.volume.zarr_volume import looks_like_zarr, open_zarr

    if looks_like_zarr(folder):
        return open_zarr(folder, level=level)
    images = files_with(folder, IMAGE_SUFFIXES)
    tiffs = files_with(folder, TIFF_SUFFIXES)
    if images and tiffs:
        raise VolumeError(
            f"{folder} holds {len(tiffs)} TIFF and {len(images)} PNG or JPEG files: which are the volume?",
            hint="Put one kind into a folder of its own, or give the path of a single file.",
        )
    if not images and not tiffs:
        raise VolumeError(
            f"{folder} holds neither Zarr metadata (.zgroup, .zarray, zarr.json, 0/.zarray) nor image files "
            f"({', '.join(IMAGE_SUFFIXES + TIFF_SUFFIXES)}).",
            hint=f"Formats that open: {KNOWN_FORMATS}.",
        )
    if level:
        raise VolumeError(f"{folder} has no pyramid: only level 0 is there, not level {level}.")
    return open_image_folder(folder, images) if images else open_tiff_folder(folder, tiffs)


def _open_file(text: str) -> Volume:
    from embedcache.volume.array_volume import open_hdf5, open_nifti, open_npy
    from embedcache.volume.image_volume import open_image
    from embedcache.volume.tiff_volume import open_tiff

    name = text.lower()
    if _is_hdf5(text):
        return open_hdf5(text)
    path = Path(text).absolute()
    if name.endswith(IMAGE_SUFFIXES):
        return open_image(path)
    if name.endswith(TIFF_SUFFIXES):
        return open_tiff(path)
    if name.endswith(".npy"):
        return open_npy(path)
    if name.endswith((".nii", ".nii.gz")):
        return open_nifti(path)
    raise VolumeError(
        f"{text}: files that end in '{path.suffix or path.name}' are not known as volumes.",
        hint=f"Formats that open: {KNOWN_FORMATS}.",
    )


def _local(text: str) -> str:
    """The path behind ``file://``; other schemes are refused by name."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None:
        return str(Path(text).expanduser()) if text else text
    if scheme[1].lower() == "file":
        return text[len(scheme[0]) :]
    raise VolumeError(
        f"{text}: volumes are read from local paths; '{scheme[1]}://' is not supported.",
        hint="Copy the volume, or the level that you need of it, to this machine and give its path.",
    )


def _is_hdf5(text: str) -> bool:
    return re.search(r"\.(h5|hdf5|hdf)(:.*)?$", text, re.IGNORECASE) is not None


def _nearest(path: Path) -> str:
    parents = [parent for parent in path.absolute().parents if parent.is_dir()]
    return f"The nearest folder that exists is {parents[0]}." if parents else "Check the path."


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
