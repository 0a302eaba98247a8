"""Turns the files of one array that is elsewhere into a Zarr store that is only read and never listed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NoReturn

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from embedcache.files import Buffer as Bytes
from embedcache.remote.chunks import ChunkSource

METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


class SourceStore(Store):
    """One array; zarr finds its metadata in here and fetches its chunks from there.

    Parameters
    ----------
    chunks : ChunkSource
        Where the chunks come from.
    prefix : str
        The array's folder inside it.
    metadata : mapping of str to bytes
        Files of the array that were read already, by name; no other metadata is asked for.
    """

    def __init__(self, chunks: ChunkSource, prefix: str, metadata: Mapping[str, bytes]) -> None:
        super().__init__(read_only=True)
        self._chunks, self._prefix, self._metadata = chunks, prefix, dict(metadata)

    @property
    def supports_writes(self) -> bool:
        """It is only read."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """It is only read."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Addresses cannot be listed."""
        return False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SourceStore) and self._chunks is other._chunks and self._prefix == other._prefix
        )

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A file or a part of it; None where there is none."""
        body: Bytes | None
        if key.rpartition("/")[2] in METADATA:
            body = self._metadata.get(key)
        else:
            threads = self._chunks.threads
            body = await asyncio.get_running_loop().run_in_executor(threads, self._read, key, byte_range)
        return None if body is None else (prototype or default_buffer_prototype()).buffer.from_bytes(body)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of several files."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return await self.get(key) is not None

    def _read(self, key: str, part: ByteRequest | None) -> Bytes | None:
        name = f"{self._prefix}/{key}" if self._prefix else key
        if isinstance(part, RangeByteRequest):
            return self._chunks.get(name, part.start, part.end - part.start)
        if isinstance(part, SuffixByteRequest):
            return self._chunks.get(name, -part.suffix, part.suffix)
        body = self._chunks.get(name)
        if isinstance(part, OffsetByteRequest) and body is not None:
            return body[part.offset :]
        return body

    async def set(self, key: str, value: Buffer) -> NoReturn:
        """Refused."""
        self._refuse()

    async def delete(self, key: str) -> NoReturn:
        """Refused."""
        self._refuse()

    def list(self) -> AsyncIterator[str]:
        """Refused."""
        self._refuse()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refused."""
        self._refuse()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(f"{self._chunks.url} is only read, and cannot be listed")
