"""Turns an N-dimensional array on disk (npy, HDF5, NIfTI, and Zarr through its subclass) into a ``Volume``.

The axes are told from the metadata where it names them, else from the shape: trailing 3 is colour, leading
ones are dropped, two dimensions are one plane. Chunks are decoded whole and kept, because a plane cut
out of 128³ chunks costs 128 planes of decoding.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.files import digest_json, sha256_hex
from embedcache.volume.axes import Axes, Fetch, axes_of
from embedcache.volume.cache import BlockCache
from embedcache.volume.crops import read_crop
from embedcache.volume.pieces import Piece, PieceGrid
from embedcache.volume.volume import DECODE_ERRORS, Volume, check_dtype, to_pixels, way_out


class ArrayVolume(Volume):
    """A uniform volume over something that is indexed like an array.

    Parameters
    ----------
    source, kind : str
        As in :class:`Volume`.
    get : callable
        Takes a tuple of integers and slices, one per dimension, and returns the values.
    dtype : numpy.dtype
        Of the stored values.
    axes : Axes
        Which dimension is which.
    chunks : tuple of int, optional
        Storage grid per dimension of the array; without it crops are read directly.
    metadata_digest : str
        SHA-256 of the metadata that describes the array.
    level : int
        Pyramid level.
    close : callable, optional
        Closes the file behind it.
    parallel : int
        Pieces of a crop that are fetched at a time; more than one where each of them is a wait.
    """

    def __init__(
        self,
        source: str,
        kind: str,
        get: Fetch,
        *,
        dtype: np.dtype[Any],
        axes: Axes,
        metadata_digest: str,
        chunks: Sequence[int] | None = None,
        level: int = 0,
        close: Callable[[], None] | None = None,
        parallel: int = 1,
    ) -> None:
        self.source, self.kind, self.level = source, kind, level
        self.dtype = check_dtype(dtype, source)
        self.channels = 1 if axes.c is None else 3
        self.n_planes, self._height, self._width = axes.size
        grid = None if chunks is None else axes.pick(chunks)
        # A chunk may be declared longer than the array.
        self.chunks = None if grid is None else (
            min(grid[0], self.n_planes), min(grid[1], self._height), min(grid[2], self._width)
        )  # fmt: skip
        self.cache = BlockCache()
        self._get, self._axes, self._metadata_digest, self._close = get, axes, metadata_digest, close
        self.parallel, self._pool_lock = parallel, threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self.pieces = self.chunks and PieceGrid(axes.size, self.chunks, self.channels * self.dtype.itemsize)

    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width, the same for all planes."""
        return self._height, self._width

    def read(self, plane: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Read a crop; see :meth:`Volume.read`."""
        y0, y1, x0, x1 = self._crop(plane, rows, columns)
        if self.pieces is None:
            direct: npt.NDArray[Any] = self._fetch(Piece(plane, plane + 1, y0, y1, x0, x1))[0]
            self.cache.count(0, direct.nbytes)
            return direct
        together = self.parallel > 1
        return read_crop(self, self.pieces, plane, (y0, y1), (x0, x1), self._decode, together=together)

    def header(self) -> dict[str, Any]:
        """Kind, shape, dtype, channels, level, chunk grid and the digest of the metadata."""
        return {
            "kind": self.kind,
            "shape": [self.n_planes, self._height, self._width],
            "dtype": self.dtype.name,
            "channels": self.channels,
            "level": self.level,
            "chunks": None if self.chunks is None else list(self.chunks),
            "metadata": f"sha256:{self._metadata_digest}",
        }

    def close(self) -> None:
        """Let go of the file and the cached chunks."""
        self.cache.clear()
        with self._pool_lock:
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False, cancel_futures=True)
        if self._close is not None:
            self._close()

    def _decode(self, pieces: list[Piece]) -> list[npt.NDArray[Any]]:
        if self.parallel == 1 or len(pieces) == 1:
            return [self._fetch(piece) for piece in pieces]
        return list(self._threads.map(self._fetch, pieces))

    @property
    def _threads(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None or self._pool[0] != os.getpid():  # threads do not come along into a fork
                self._pool = os.getpid(), ThreadPoolExecutor(self.parallel, "embedcache-decode")
            return self._pool[1]

    def _fetch(self, piece: Piece) -> npt.NDArray[Any]:
        box = (slice(piece.z0, piece.z1), slice(piece.y0, piece.y1), slice(piece.x0, piece.x1))
        try:
            return to_pixels(self._axes.fetch(self._get, box))
        except DECODE_ERRORS as error:
            raise VolumeError(
                f"{self.source}: {piece} cannot be read ({type(error).__name__}: {error}).",
                hint=way_out(
                    error, "A chunk there is damaged or has an unknown codec: fetch that part again."
                ),
            ) from error


def open_npy(path: Path) -> ArrayVolume:
    """Open a ``.npy`` file as a memory map."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise VolumeError(f"{path} is not a readable .npy array ({error}).") from error
    with path.open("rb") as stream:
        head = stream.read(int(array.offset))

    def get(index: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        # A copy, so that no crop keeps the whole file mapped.
        return np.array(array[index])

    return ArrayVolume(
        str(path),
        "npy",
        get,
        dtype=array.dtype,
        axes=axes_of(array.shape, str(path)),
        metadata_digest=sha256_hex(head),
    )


def open_hdf5(text: str) -> ArrayVolume:
    """Open ``FILE.h5:DATASET``; the dataset may be left out when the file holds one array at its top."""
    try:
        import h5py
    except ImportError as error:
        raise VolumeError(
            f"{text}: reading HDF5 needs h5py, which is not installed.",
            hint="Install it with: pip install 'embedcache[hdf5]'",
        ) from error
    # A folder on the way may hold a colon too, so the dataset starts behind the last file ending.
    name, _, dataset = text.rpartition(":") if not Path(text).exists() else (text, "", "")
    path = Path(name or text).absolute()
    if not path.is_file():
        raise VolumeError(f"{path} does not exist.", hint="HDF5 volumes are given as FILE.h5:DATASET.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise VolumeError(f"{path} is not a readable HDF5 file ({error}).") from error
    tops = [key for key in file if isinstance(file.get(key), h5py.Dataset)]  # None: a link to nowhere
    if not dataset and len(tops) == 1:
        dataset = tops[0]
    if not dataset or not isinstance(file.get(dataset), h5py.Dataset):
        file.close()
        raise VolumeError(
            f"{path} holds no array '{dataset}'."
            if dataset
            else f"{path}: which of its arrays is the volume?",
            hint=f"Give it as {path}:DATASET. Arrays at its top: {', '.join(tops) or 'none'}.",
        )
    array = file[dataset]
    metadata = {"dataset": dataset, "dtype": array.dtype.str, "shape": list(array.shape),
                "chunks": array.chunks and list(array.chunks), "compression": array.compression}  # fmt: skip
    return ArrayVolume(
        f"{path}:{dataset}",
        "hdf5",
        array.__getitem__,
        dtype=array.dtype,
        axes=axes_of(array.shape, f"{path}:{dataset}"),
        chunks=array.chunks,
        metadata_digest=digest_json(metadata),
        close=file.close,
    )


def open_nifti(path: Path) -> ArrayVolume:
    """Open ``.nii`` or ``.nii.gz``; its (X, Y, Z) order is read as planes (Z, Y, X)."""
    try:
        import nibabel
    except ImportError as error:
        raise VolumeError(
            f"{path}: reading NIfTI needs nibabel, which is not installed.",
            hint="Install it with: pip install 'embedcache[nifti]'",
        ) from error
    try:
        image: Any = nibabel.load(path)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise VolumeError(f"{path} is not a readable NIfTI file ({error}).") from error
    names = ["x", "y", "z", "t", "c", "u", "v"][: len(image.shape)]
    proxy = image.dataobj
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    dtype = np.dtype(np.float32) if scaled else image.get_data_dtype()

    def get(index: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        return np.asarray(proxy[index]).astype(dtype)

    planes_deep = (image.shape[0], image.shape[1], 1, *([1] * (len(names) - 3)))
    return ArrayVolume(
        str(path),
        "nifti",
        get,
        dtype=dtype,
        axes=axes_of(tuple(image.shape), str(path), names),
        # A gzip stream has no places to jump to; whole planes are cached instead of crops.
        chunks=planes_deep if path.name.endswith(".gz") else None,
        metadata_digest=sha256_hex(bytes(image.header.binaryblock)),
    )
