"""Turns the address of a store into an ``EmbeddingStore`` that reads from there, and keeps what it has read.

All of a store but its embeddings is copied into a folder of this machine, the *mirror*, which is an ordinary
store without shards. An embedding is fetched as the part of the shard's file that its index names, is taken only
when its checksum is the recorded one, and is kept in the mirror.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError, InputError, StorageError
from embedcache.files import crc32c, exclusive_lock, make_folder, sha256_hex
from embedcache.remote import Source, is_remote, open_source, without_password
from embedcache.remote.kept import KeptFiles
from embedcache.remote.sources import again_and_again
from embedcache.store import layout
from embedcache.store.reading.address import MIRROR_OF
from embedcache.store.reading.mirror import copy_but_embeddings, get, write_mirrored
from embedcache.store.shards.scales import read_scales
from embedcache.store.shards.shard import CRC_BYTES, ShardFile, index_bytes
from embedcache.store.store import EmbeddingStore

__all__ = ["RemoteStore", "is_remote", "open_remote"]

CACHE = Path("~/.cache/embedcache/remote")
"""Where mirrors are, unless told otherwise."""

CACHE_BYTES = 50 << 30
"""Bytes of embeddings that a mirror keeps, unless told otherwise."""

KEPT, LOCK = "kept", ".lock"
"""What a mirror holds besides a store's own files."""

PATIENCE_SECONDS = 300.0
"""How long a process waits for another that is copying to the same mirror."""


class RemoteStore(EmbeddingStore):
    """A store that is somewhere else; for reading only.

    Attributes
    ----------
    url : str
        Where it is, without a password; ``path`` is its mirror.
    """

    url: str
    source: Source
    kept: KeptFiles
    _again: Callable[[], EmbeddingStore]

    def open_shard(self, shard: int) -> ShardFile:
        """A shard of the store over there; of an int8 store its scales are copied into the mirror."""
        if self.form.dtype == "int8" and not self._has_scales(shard):
            name = layout.scales_path(Path(), shard).as_posix()
            try:
                write_mirrored(self.path, name, get(self.source, self.url, name))
            except FileNotFoundError as error:
                raise CorruptionError(f"the scales {self.url}/{name} are missing") from error
        return RemoteShard(self, shard)

    def _has_scales(self, shard: int) -> bool:
        """Whether the mirror has the scales of a shard as its journal recorded them."""
        recorded = self.state.scale_crc
        if recorded is None:
            return False
        numbers = np.flatnonzero(self.committed)
        numbers = numbers[numbers // self.shard_tiles == shard]
        try:
            scales = read_scales(self.path, shard, self.shard_tiles)
        except EmbedcacheError:
            return False
        return all(scales.crc(int(n) % self.shard_tiles) == int(recorded[n]) for n in numbers)

    @property
    def address(self) -> str:
        """See :class:`~embedcache.store.store.EmbeddingStore`."""
        return self.url

    def repair_hint(self) -> str:
        """See :class:`~embedcache.store.store.EmbeddingStore`."""
        return f"It may have changed since {self.url} was opened: open it again. Other tiles still read."

    def writer(self, shards: range | None = None) -> NoReturn:
        """Refused: InputError."""
        raise self._read_only()

    def add_certificate(self, certificate: Mapping[str, Any]) -> NoReturn:
        """Refused: InputError."""
        raise self._read_only()

    def _read_only(self) -> InputError:
        return InputError(f"{self.url} is only read from here; write to it where it is.")

    def __reduce__(self) -> tuple[Callable[[], EmbeddingStore], tuple[()]]:  # type: ignore[override]
        return self._again, ()

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r}, {int(self.committed.sum())} of {len(self)} tile numbers)"


class RemoteShard(ShardFile):
    """A shard file somewhere else; what is read of it is kept."""

    def __init__(self, store: RemoteStore, shard: int) -> None:
        self._descriptor = -1
        self._store, self._shard = store, shard
        self._form, self._shard_tiles = store.form, store.shard_tiles
        self.path = layout.shard_path(store.path, shard)
        self._name = self.path.relative_to(store.path).as_posix()
        self.size = int(store.state.shard_bytes[shard])
        self.identity = (0, shard, self.size, 0)

    @cached_property
    def index(self) -> npt.NDArray[np.uint64]:
        """See :class:`ShardFile`; fetched once."""
        length = index_bytes(self._shard_tiles)
        data = self._fetch(self.size - length, length)
        return np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(self._shard_tiles, 2)

    def _fetch(self, first: int, length: int) -> bytes:
        """Bytes that end in their own checksum; never others."""

        def fetch() -> bytes:
            data = self._store.source.read(self._name, first, length)
            if crc32c(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
                raise OSError("what came differs from its checksum")
            return data

        try:
            return again_and_again(fetch, f"{self._store.url}/{self._name}")
        except FileNotFoundError as error:
            raise CorruptionError(f"the shard file {self._store.url}/{self._name} is missing") from error
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and "checksum" in str(error.__cause__):
                raise CorruptionError(f"{self._store.url}/{self._name}: {error.__cause__}") from error
            raise

    def read_into(self, slot: int, out: memoryview) -> int:
        """See :class:`ShardFile`; from the mirror where it is kept there."""
        self._read(slot, out, check=True)
        return crc32c(out)

    def read_unchecked(self, slot: int, out: memoryview) -> None:
        """See :class:`ShardFile`; what comes from afar is checked all the same."""
        self._read(slot, out, check=False)

    def _read(self, slot: int, out: memoryview, *, check: bool) -> None:
        crc = int(self._store.state.crc[self._shard * self._shard_tiles + slot])
        name = f"{self._shard}-{slot}-{crc:08x}"
        if self._store.kept.read_into(name, out, check=check):
            return
        data = self._fetch(self.offset_of(slot), self._form.chunk_bytes)
        out[:] = memoryview(data)[:-CRC_BYTES]
        if crc32c(out) != crc:
            raise CorruptionError("its bytes over there are not those that its journal recorded")
        self._store.kept.keep(name, out)

    def will_need(self, slot: int) -> None:
        """Nothing: it is fetched when it is read."""

    def fileno(self) -> int:
        """Refused: OSError."""
        raise OSError("a file that is somewhere else is not mapped")


def open_remote(url: str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> EmbeddingStore:
    """Open a store that is somewhere else, for reading.

    Parameters
    ----------
    url : str
        ``s3://…``, ``gs://…``, ``https://…``, ``memory://…``.
    cache : Path, optional
        Where mirrors are; default ``~/.cache/embedcache/remote``.
    cache_bytes : int
        Bytes of embeddings that are kept there.

    Raises
    ------
    InputError
        When there is no store, what it needs is not installed, or its journal has files that cannot be found.
    MismatchError
        When the mirror is of another store that was at this address; it is left as it is.
    StorageError
        When it cannot be reached.
    CorruptionError
        As of :meth:`EmbeddingStore.open`.
    LockedError
        When another process has been copying to the same mirror for minutes.
    """
    source = open_source(url)
    shown = without_password(url)
    mirror = (cache or CACHE).expanduser().absolute() / sha256_hex(url.encode())
    make_folder(mirror)
    with exclusive_lock(mirror / LOCK, guarded=mirror, wait=PATIENCE_SECONDS):
        write_mirrored(mirror, MIRROR_OF, f"{shown}\n".encode())
        listed = copy_but_embeddings(source, shown, mirror)
        store = RemoteStore.open(mirror)
    assert isinstance(store, RemoteStore)
    if not listed and store.state.snapshot is None and bool(store.missing.any()):
        raise InputError(
            f"{shown} cannot be listed, and {int(store.missing.sum())} wanted embeddings are not in the files of "
            "its journal that have fixed names; others may hold them.",
            hint="Copy it to this machine, or serve it from where it can be listed, as s3:// can.",
        )
    store.url, store.source = shown, source
    store.kept = KeptFiles(mirror / KEPT, cache_bytes)
    store._again = partial(open_remote, url, cache=cache, cache_bytes=cache_bytes)
    return store
