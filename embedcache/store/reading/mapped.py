"""Turns a shard file that is in the system's cache into copies of its chunks, faster than reading does.

Some processors copy within a process's memory twice as fast as the system hands over what it has cached. But a
mapped file has faults of its own: what cannot be read kills the process, and what is not cached comes page by
page. So only chunks are copied that are cached, and their pages are asked for first, which the system answers with
an error where touching them would kill. All else is read as a file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
import weakref
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np

from embedcache.errors import CorruptionError
from embedcache.files import crc32c
from embedcache.store.shards.shard import CRC_BYTES, ShardFile

MADV_POPULATE_READ = 22
"""Of Linux since 5.14; Python has no name for it yet."""

RECENT_SECONDS = 10.0
"""How long pages that were readable are taken to be: the system gives up first what was not used for long."""

MAPPED_BYTES = 512 << 20
"""Bytes of chunks whose pages a reader has in its process's memory at most: they count as memory that it takes."""

_PAGE = mmap.PAGESIZE


def _system() -> Any:
    """The C library: unlike Python's own module it lets other threads go on meanwhile, and takes no descriptor."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_int64]
    library.munmap.argtypes = [pointer, size]
    library.madvise.argtypes = [pointer, size, number]
    library.mincore.argtypes = [pointer, size, pointer]
    return library


_library = _system()
_FAILED = ctypes.c_void_p(-1).value


class MappedChunks:
    """The chunks whose pages a reader has in its process's memory; those unused for longest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[weakref.ref[MappedShard], int], int] = OrderedDict()
        self._bytes = 0

    def use(self, shard: MappedShard, slot: int, length: int) -> None:
        """Count a chunk in, and let others go where they are too many."""
        key = weakref.ref(shard), slot
        with self._lock:
            self._bytes += length - self._chunks.pop(key, 0)
            self._chunks[key] = length
            while self._bytes > MAPPED_BYTES and len(self._chunks) > 1:
                (oldest, its_slot), size = self._chunks.popitem(last=False)
                self._bytes -= size
                living = oldest()
                if living is not None:
                    living.let_go(its_slot)


class MappedShard:
    """A shard file in this process's memory; gone with the last reference to it.

    Parameters
    ----------
    file : ShardFile
    chunks : MappedChunks
        Of its reader.

    Raises
    ------
    OSError
        When the system refuses to map it.
    """

    def __init__(self, file: ShardFile, chunks: MappedChunks) -> None:
        self._file, self._size, self._chunks = file, file.size, chunks
        self._address: int | None = None
        address = _library.mmap(None, file.size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address == _FAILED:
            raise _error()
        self._address = address
        self._bytes = np.ctypeslib.as_array((ctypes.c_ubyte * file.size).from_address(address))
        self._readable: dict[int, float] = {}

    def at_hand(self, slot: int) -> bool:
        """Whether the chunk of a slot is cached by the system; if so, it can be copied now.

        Of a file that this user may not write to Linux says that all is cached; asking for the pages then reads
        them from the disk, while other threads go on.

        Raises
        ------
        OSError
            When it cannot be: to be read as a file, which tells why.
        """
        self._file.require_size()
        now = time.monotonic()
        if now - self._readable.get(slot, -RECENT_SECONDS) < RECENT_SECONDS:
            return True
        address, length = self._pages(slot)
        pages = np.zeros(-(-length // _PAGE), np.uint8)
        if _library.mincore(address, length, pages.ctypes.data):
            raise _error()
        if not (pages & 1).all():
            return False
        self._chunks.use(self, slot, length)
        if _library.madvise(address, length, MADV_POPULATE_READ):
            raise _error()
        self._readable[slot] = now
        return True

    def _pages(self, slot: int) -> tuple[int, int]:
        """Address and length of the pages of a chunk."""
        offset = self._file.offset_of(slot)
        first = offset // _PAGE * _PAGE
        assert self._address is not None
        return self._address + first, min(offset + self._file.chunk_bytes, self._size) - first

    def let_go(self, slot: int) -> None:
        """Have the pages of a chunk no longer in this process's memory; they stay in the system's cache."""
        self._readable.pop(slot, None)
        _library.madvise(*self._pages(slot), mmap.MADV_DONTNEED)

    def copy_into(self, slot: int, out: memoryview, *, check: bool) -> int | None:
        """Copy a chunk that is at hand into ``out``; its CRC-32C if it is to be checked.

        Raises
        ------
        CorruptionError
            When it differs from the checksum behind it.
        """
        offset, length = self._file.offset_of(slot), len(out)
        np.copyto(np.frombuffer(out, np.uint8), self._bytes[offset : offset + length])
        if not check:
            return None
        found = crc32c(out)
        stored = self._bytes[offset + length : offset + length + CRC_BYTES].tobytes()
        if found.to_bytes(CRC_BYTES, "little") != stored:
            raise CorruptionError(
                f"the chunk at byte {offset} of the shard file {self._file.path} differs from its checksum"
            )
        return found

    def __del__(self) -> None:
        with suppress(AttributeError):  # where it was not mapped
            if self._address is not None:
                del self._bytes
                _library.munmap(self._address, self._size)
                self._address = None


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
