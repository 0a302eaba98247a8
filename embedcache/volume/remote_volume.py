"""Turns the address of a Zarr volume into a ``Volume``: chunks are fetched when they are read, and kept here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy.typing as npt
import zarr

from embedcache.errors import InputError, StorageError, VolumeError
from embedcache.files import sha256_hex
from embedcache.remote import open_source, without_password
from embedcache.remote.address import one_name
from embedcache.remote.chunks import CHUNK_CACHE_BYTES, ChunkSource, chunk_folder
from embedcache.remote.fetched import Fetched
from embedcache.remote.sources import RefusedError
from embedcache.remote.zarr_store import SourceStore
from embedcache.volume.array_volume import ArrayVolume
from embedcache.volume.axes import Axes
from embedcache.volume.pieces import Piece
from embedcache.volume.tree import ARRAY_FILES, GROUP_FILES
from embedcache.volume.volume import DECODE_ERRORS
from embedcache.volume.zarr_volume import FoundArray, describe, find_array, open_array

OTHER_ENDINGS = (
    ".tif",
    ".tiff",
    ".png",
    ".jpg",
    ".jpeg",
    ".npy",
    ".h5",
    ".hdf5",
    ".nii",
    ".nii.gz",
    ".nrrd",
    ".nhdr",
)


class RemoteTree:
    """A folder behind an address; what is read of it is remembered while a volume is being opened."""

    def __init__(
        self, chunks: ChunkSource, prefix: str, known: dict[str, bytes | RefusedError | None]
    ) -> None:
        self._chunks, self._known = chunks, known
        self.prefix = prefix
        self.name = f"{chunks.url}/{prefix}" if prefix else chunks.url
        self.last = self.name.rpartition("/")[2]

    @property
    def parent(self) -> RemoteTree | None:
        """See :class:`~embedcache.volume.tree.Tree`."""
        if not self.prefix:
            return None
        return RemoteTree(self._chunks, self.prefix.rpartition("/")[0], self._known)

    def child(self, path: str) -> RemoteTree:
        """See :class:`~embedcache.volume.tree.Tree`."""
        return RemoteTree(self._chunks, self._inside(path), self._known)

    def read(self, name: str) -> bytes | None:
        """See :class:`~embedcache.volume.tree.Tree`; what is refused is not there, until nothing is found."""
        path = self._inside(name)
        if path not in self._known:
            self._known[path] = self._ask(path)
        found = self._known[path]
        return found if isinstance(found, bytes) else None

    def expect(self, names: Sequence[str]) -> None:
        """See :class:`~embedcache.volume.tree.Tree`."""
        paths = [path for path in map(self._inside, names) if path not in self._known]
        self._known.update(zip(paths, self._chunks.threads.map(self._ask, paths), strict=True))

    def array(self, filename: str, metadata: bytes) -> Any:
        """See :class:`~embedcache.volume.tree.Tree`."""
        store = SourceStore(self._chunks, self.prefix, {filename: metadata})
        return zarr.open_array(store=store, mode="r", zarr_format=2 if filename == ".zarray" else 3)

    @property
    def refused(self) -> RefusedError | None:
        """Why nothing could be had here, where the server refuses."""
        return next((found for found in self._known.values() if isinstance(found, RefusedError)), None)

    @property
    def is_empty(self) -> bool:
        """Whether no file was found yet."""
        return not any(isinstance(found, bytes) for found in self._known.values())

    def _inside(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _ask(self, path: str) -> bytes | RefusedError | None:
        try:
            return self._chunks.metadata(path)
        except RefusedError as error:
            return error


class RemoteVolume(ArrayVolume):
    """A level of a Zarr volume that is somewhere else."""

    chunk_source: ChunkSource

    @property
    def fetched(self) -> Fetched:
        """What was asked of the server since it was opened."""
        return self.chunk_source.fetched

    def _fetch(self, piece: Piece) -> npt.NDArray[Any]:
        try:
            return super()._fetch(piece)
        except VolumeError as error:
            if not isinstance(error.__cause__, DECODE_ERRORS):
                raise
        with self.chunk_source.anew():  # what is kept here may be what came on a bad day
            return super()._fetch(piece)


def open_remote(
    url: str, *, level: int = 0, anon: bool | None = None, chunk_cache: int | None = None
) -> RemoteVolume:
    """Open a volume that is somewhere else; of its files only metadata is read, nothing is ever listed.

    Parameters
    ----------
    url : str
        ``s3://BUCKET/KEY``, ``https://…``, or any address that fsspec knows: a group or an array.
    level : int
        Pyramid level.
    anon : bool, optional
        Whether to ask without credentials; of s3:// only.
    chunk_cache : int, optional
        Bytes of chunks that are kept on this machine, of all volumes together; 20 GiB by default, 0 keeps none.

    Raises
    ------
    VolumeError
        When no Zarr volume is there, it is no volume, or the server refuses.
    StorageError
        When the server cannot be reached.
    """
    if level < 0:
        raise VolumeError(f"--level {level}: levels count from 0, the finest.")
    url = one_name(url)
    shown = without_password(url)
    if urlsplit(url).path.lower().endswith(OTHER_ENDINGS):
        raise VolumeError(
            f"{shown}: over the network only Zarr opens.", hint="Download the file and give its path."
        )
    tree, chunks = _tree(url, anon, CHUNK_CACHE_BYTES if chunk_cache is None else chunk_cache)
    try:
        found = _find(tree, level)
        array, axes = open_array(found)
        volume = _volume(found, array, axes, chunks)
        describe(volume, found, axes)
    except BaseException:
        chunks.close()
        raise
    files = array.shards or array.chunks
    raw_bytes = array.dtype.itemsize
    for length in files:
        raw_bytes *= length
    witness = f"{found.tree.name}/{found.filename}".removeprefix(f"{chunks.url}/")
    chunks.identify(sha256_hex(found.metadata), witness, raw_bytes)
    return volume


def _tree(url: str, anon: bool | None, limit: int) -> tuple[RemoteTree, ChunkSource]:
    """The folder of an address, seen from the folder around it: an array may be a level of the group there."""
    parts = urlsplit(url)
    around, _, last = parts.path.rpartition("/")
    root = urlunsplit(parts._replace(path=around))
    source = open_source(root, anon=anon)
    folder = chunk_folder() if limit > 0 else None
    chunks = ChunkSource(source, without_password(root), folder=folder, limit=limit)
    return RemoteTree(chunks, last, {}), chunks


def _find(tree: RemoteTree, level: int) -> FoundArray:
    """The array to read, or why there is none."""
    try:
        tree.expect(sorted({*ARRAY_FILES, *GROUP_FILES}))
        return find_array(tree, level=level)
    except StorageError as error:
        cause = error.message.rpartition(" cannot be read: ")[2]
        raise StorageError(f"{tree.name} cannot be reached: {cause}", hint=error.hint) from error
    except VolumeError:
        if not tree.is_empty:
            raise
        if tree.refused is not None:
            raise _refusal(tree.name, tree.refused) from tree.refused
        raise VolumeError(
            f"{tree.name} holds no Zarr metadata (.zattrs, .zgroup, .zarray, zarr.json, 0/.zarray).",
            hint="Addresses cannot be listed: give the group or the array itself.",
        ) from None


def _refusal(name: str, error: RefusedError) -> InputError:
    says = error.message.rpartition(": ")[2]
    return VolumeError(f"{name}: {says}", hint=error.hint or "Look at the address, and at who may read it.")


def _volume(found: FoundArray, array: Any, axes: Axes, chunks: ChunkSource) -> RemoteVolume:
    volume = RemoteVolume(
        found.source,
        "zarr",
        array.__getitem__,
        dtype=array.dtype,
        axes=axes,
        chunks=array.chunks,
        metadata_digest=sha256_hex(found.metadata),
        level=found.level,
        parallel=chunks.parallel,
        close=chunks.close,
    )
    volume.chunk_source = chunks
    return volume
