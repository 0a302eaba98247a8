"""Turns embeddings that came from afar into files of this machine, the longest unused of which go first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from embedcache.errors import StorageError
from embedcache.files import Buffer, crc32c, make_folder, write_file
from embedcache.files.removal import remove_quietly

_CRC_BYTES = 4


class KeptFiles:
    """A folder of chunks with their checksums, never more than so many bytes; threads may share it.

    Parameters
    ----------
    folder : Path
        Made when it is missing; what another process kept there is found.
    limit : int
        Bytes of all files.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        found = [path for path in folder.glob("*") if path.is_file() and path.suffix != ".partial"]
        known = sorted((path.stat().st_mtime_ns, path.name, path.stat().st_size) for path in found)
        self._sizes = OrderedDict((name, size) for _, name, size in known)
        self._evict(0)

    @property
    def bytes(self) -> int:
        """Of all files that are kept."""
        with self._lock:
            return sum(self._sizes.values())

    def read_into(self, name: str, out: memoryview, *, check: bool) -> bool:
        """Read a chunk that is kept; whether there is one, of the right length and checksum."""
        path = self._folder / name
        stored = bytearray(_CRC_BYTES)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            whole = os.preadv(descriptor, [out, stored], 0) == len(out) + _CRC_BYTES
            with suppress(OSError):
                os.utime(descriptor)
        except OSError:
            whole = False
        finally:
            os.close(descriptor)
        if not whole or (check and crc32c(out).to_bytes(_CRC_BYTES, "little") != stored):
            self._remove(name)
            return False
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
        return True

    def keep(self, name: str, payload: Buffer) -> None:
        """Keep a chunk if there is room for it on the disk and under the limit."""
        size = len(payload) + _CRC_BYTES
        if size > self._limit:
            return
        with self._lock:
            self._evict(size)
            self._sizes[name] = size
        try:
            make_folder(self._folder)
            write_file(self._folder / name, [payload, crc32c(payload).to_bytes(_CRC_BYTES, "little")])
        except StorageError:  # full: it is fetched again when it is asked for again
            self._remove(name)

    def _evict(self, wanted: int) -> None:
        """Make room; by the holder of the lock."""
        total = sum(self._sizes.values())
        while self._sizes and total + wanted > self._limit:
            name, size = self._sizes.popitem(last=False)
            remove_quietly(self._folder / name)
            total -= size

    def _remove(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name, None)
        remove_quietly(self._folder / name)
