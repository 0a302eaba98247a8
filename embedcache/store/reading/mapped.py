"""Turns a shard file that is in the system's cache into copies of its chunks, twice as fast as reading does.

Where a processor copies within its own memory faster than the system hands over what it has cached, reading again
what was read before is bound by that. A mapped file has a fault of its own: what cannot be read kills the process.
So the system is first told to make the pages readable, which it answers with an error; then the file is read as
ever, and whoever asked learns what is wrong with it.
"""

from __future__ import annotations

import mmap
import time

import numpy as np

from embedcache.errors import CorruptionError
from embedcache.files import crc32c
from embedcache.store.shards.shard import CRC_BYTES, ShardFile

MADV_POPULATE_READ = 22
"""Of Linux since 5.14; Python has no name for it yet."""

RECENT_SECONDS = 10.0
"""How long pages that were readable are taken to be: the system gives up first what was not used for long."""

_PAGE = mmap.PAGESIZE


class MappedShard:
    """A shard file in this process's memory.

    Parameters
    ----------
    file : ShardFile

    Raises
    ------
    OSError, ValueError
        When the system refuses to map it.
    """

    def __init__(self, file: ShardFile) -> None:
        self._file = file
        self._map = file.map()
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._readable: dict[int, float] = {}

    def read_into(self, slot: int, out: memoryview, *, check: bool) -> int | None:
        """Copy the chunk of a slot into ``out``; its CRC-32C if it is to be checked.

        Raises
        ------
        OSError
            When the pages cannot be made readable: to be read as a file, which tells why.
        CorruptionError
            When it differs from the checksum behind it.
        """
        offset, length = self._file.offset_of(slot), len(out)
        self._make_readable(offset, length + CRC_BYTES)
        np.copyto(np.frombuffer(out, np.uint8), self._bytes[offset : offset + length])
        if not check:
            return None
        found = crc32c(out)
        if found.to_bytes(CRC_BYTES, "little") != self._map[offset + length : offset + length + CRC_BYTES]:
            raise CorruptionError(
                f"the chunk at byte {offset} of the shard file {self._file.path} differs from its checksum"
            )
        return found

    def _make_readable(self, offset: int, length: int) -> None:
        """Ask for the pages of a chunk, unless they were there just now; the file must not have been cut since."""
        self._file.require_size()
        now = time.monotonic()
        if now - self._readable.get(offset, -RECENT_SECONDS) >= RECENT_SECONDS:
            first = offset // _PAGE * _PAGE
            self._map.madvise(MADV_POPULATE_READ, first, offset + length - first)
            self._readable[offset] = now
