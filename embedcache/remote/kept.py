"""Turns what came from afar into files of this machine, the longest unused of which go first."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from embedcache.errors import StorageError
from embedcache.files import PARTIAL_SUFFIX, Buffer, crc32c, make_folder, partial_name
from embedcache.files import disk as _seam
from embedcache.files.durable import write_all
from embedcache.files.removal import remove_quietly
from embedcache.remote.bodies import room

_CRC_BYTES = 4

ABANDONED_SECONDS = 3600
"""A file that was begun so long ago was left behind by a process that was killed."""

DIGESTS = re.compile(r"[0-9a-f]{64}/[0-9a-f]{64}")
"""Names in a folder that may hold other people's files too."""

Chunk = memoryview | None


class KeptFiles:
    """A folder of chunks with their checksums, never more than so many bytes; threads may share it.

    Parameters
    ----------
    folder : Path
        Made when it is missing; what another process kept there is found.
    limit : int
        Bytes of all files.
    only : Pattern, optional
        Names that are this folder's own; files of other names are neither counted nor ever removed.
    """

    def __init__(self, folder: Path, limit: int, *, only: re.Pattern[str] | None = None) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(_files_of(folder, only)))
        self._total = sum(self._sizes.values())
        self._evict(0)

    @property
    def bytes(self) -> int:
        """Of all files that are kept."""
        with self._lock:
            return self._total

    def read_into(self, name: str, out: memoryview, *, check: bool) -> bool:
        """Read a chunk that is kept; whether there is one, of the right length and checksum."""
        stored = bytearray(_CRC_BYTES)
        descriptor = self._open(name)
        if descriptor is None:
            return False
        try:
            whole = os.preadv(descriptor, [out, stored], 0) == len(out) + _CRC_BYTES
        except OSError:
            whole = False
        finally:
            os.close(descriptor)
        return self._took(name, whole and not (check and _crc(out) != stored))

    def read(self, name: str) -> Chunk:
        """A chunk of whatever length that is kept, checked; None where there is none, or it is damaged."""
        descriptor = self._open(name)
        if descriptor is None:
            return None
        try:
            size = os.fstat(descriptor).st_size
            body = room(size)
            whole = size >= _CRC_BYTES and os.preadv(descriptor, [body], 0) == size
        except OSError:
            whole = False
        finally:
            os.close(descriptor)
        if not self._took(name, whole and _crc(body[:-_CRC_BYTES]) == body[-_CRC_BYTES:]):
            return None
        return body[:-_CRC_BYTES]

    def keep(self, name: str, payload: Buffer) -> None:
        """Keep a chunk if there is room for it on the disk and under the limit."""
        size = len(payload) + _CRC_BYTES
        if size > self._limit:
            return
        with self._lock:
            self._evict(size)
            self._total += size - self._sizes.pop(name, 0)
            self._sizes[name] = size
        path = self._folder / name
        try:
            make_folder(path.parent)
            _write(path, [payload, _crc(payload)])
        except (OSError, StorageError):  # full: it is fetched again when it is asked for again
            self._remove(name)

    def _open(self, name: str) -> int | None:
        """A descriptor of a kept file, which counts as used now."""
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with suppress(OSError):
            os.utime(descriptor)
        return descriptor

    def _took(self, name: str, whole: bool) -> bool:
        if not whole:
            self._remove(name)
            return False
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
        return True

    def _evict(self, wanted: int) -> None:
        """Make room; by the holder of the lock."""
        while self._sizes and self._total + wanted > self._limit:
            name, size = self._sizes.popitem(last=False)
            remove_quietly(self._folder / name)
            self._total -= size

    def _remove(self, name: str) -> None:
        with self._lock:
            self._total -= self._sizes.pop(name, 0)
        remove_quietly(self._folder / name)


def _write(path: Path, pieces: list[Buffer]) -> None:
    """Write a file at once, without waiting for the disk: what a power cut spoils has another checksum."""
    partial = partial_name(path)
    try:
        descriptor = _seam.disk.open_new(partial)
        try:
            write_all(descriptor, [memoryview(piece).cast("B") for piece in pieces], 0)
        finally:
            os.close(descriptor)
        _seam.disk.replace(partial, path)
    except BaseException:
        remove_quietly(partial)
        raise


def _crc(payload: Buffer) -> bytes:
    return crc32c(payload).to_bytes(_CRC_BYTES, "little")


def _files_of(folder: Path, only: re.Pattern[str] | None) -> Iterator[tuple[int, str, int]]:
    """When each file at or below a folder was used last, its name from there, and its bytes."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            partial, inside = path.suffix == PARTIAL_SUFFIX, path.relative_to(folder).as_posix()
            if only is not None and only.fullmatch(inside.rsplit(".", 2)[0] if partial else inside) is None:
                continue
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat(follow_symlinks=False)
                if partial:
                    if time.time() - status.st_mtime > ABANDONED_SECONDS:
                        remove_quietly(path)
                else:
                    yield status.st_mtime_ns, inside, status.st_size
