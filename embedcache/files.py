"""Turns bytes into durable files: the one place that writes. Temp, fsync, rename; append; locks; digests.

A file appears under its final name only when all its bytes are on disk: they go to ``NAME.<pid>.partial``
in the same folder, are fsynced, renamed, and the folder is fsynced. What a killed process leaves behind is
such a ``*.partial`` file, which the next writer removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from embedcache.errors import LockedError, StorageError

PARTIAL_SUFFIX = ".partial"

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer) -> int:
    """CRC-32C (Castagnoli) of ``data``, as Zarr's ``crc32c`` codec stores it."""
    # the extension refuses memoryviews, but takes a numpy array without a copy
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


def sha256_hex(data: Buffer) -> str:
    """SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_json(value: Any) -> str:
    """SHA-256 of :func:`canonical_json` of ``value``."""
    return sha256_hex(canonical_json(value).encode("ascii"))


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (new and renamed names) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, parts: Buffer | Iterable[Buffer]) -> int:
    """Write a whole file atomically and durably.

    Parameters
    ----------
    path : Path
        Final name; its folder is made when missing. An older file of that name is replaced.
    parts : bytes or iterable of bytes
        The content, in order.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    StorageError
        When the disk refuses (full, denied, failing); an older file of that name is left as it was.
    """
    pieces = [parts] if isinstance(parts, bytes | bytearray | memoryview) else parts
    partial = partial_name(path)
    written = stage_file(partial, pieces)
    publish_file(partial, path)
    return written


def partial_name(path: Path) -> Path:
    """Name under which the bytes of ``path`` are gathered before they are published."""
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")


def stage_file(partial: Path, pieces: Iterable[Buffer]) -> int:
    """Write and fsync a file that nobody looks at yet; on failure nothing is left. Returns bytes written.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        make_folder(partial.parent)
        return _write_and_sync(partial, pieces)
    except OSError as error:
        _remove_quietly(partial)
        raise storage_error(error, partial) from error
    except BaseException:
        _remove_quietly(partial)
        raise


def publish_file(partial: Path, path: Path) -> None:
    """Give a staged file its final name, durably; an older file of that name is replaced in one step.

    Raises
    ------
    StorageError
        When the disk refuses; an older file of that name is left as it was.
    """
    try:
        make_folder(path.parent)
        partial.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        _remove_quietly(partial)
        raise storage_error(error, path) from error


def _write_and_sync(path: Path, pieces: Iterable[Buffer]) -> int:
    written = 0
    with path.open("wb") as stream:
        for piece in pieces:
            stream.write(piece)
            written += len(piece) if isinstance(piece, bytes | bytearray) else piece.nbytes
        stream.flush()
        os.fsync(stream.fileno())
    return written


def create_file(path: Path, data: Buffer) -> None:
    """Write a whole file atomically and durably, only if no file of that name exists.

    Raises
    ------
    FileExistsError
        When ``path`` exists; it is left as it is. Of several processes exactly one succeeds (on a file system
        without hard links, such as exFAT: of several that hold the same lock in turn).
    StorageError
        When the disk refuses.
    """
    partial = partial_name(path)
    try:
        make_folder(path.parent)
        _write_and_sync(partial, [data])
        _publish_new(partial, path)
        fsync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        _remove_quietly(partial)


def _publish_new(partial: Path, path: Path) -> None:
    """Give a file its final name unless that is taken: unlike rename, link refuses to replace."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        partial.replace(path)


def append_line(path: Path, line: str) -> int:
    """Append one line to a file and make it durable before returning.

    A last line without its line break was never acknowledged (its writer was killed); it is cut off first.
    When the disk refuses, the file is cut back to where it was.

    Returns
    -------
    int
        Offset in the file at which the line begins.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        make_folder(path.parent)
        existed = path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            start = _end_of_last_line(descriptor)
            try:
                os.ftruncate(descriptor, start)
                _write_all(descriptor, line.encode("utf-8") + b"\n", start)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)
        if not existed:
            fsync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    return start


def _end_of_last_line(descriptor: int) -> int:
    """Offset behind the last line break of an open file."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def cut_file(path: Path, size: int) -> None:
    """Cut a file to its first ``size`` bytes, durably.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        with path.open("r+b") as stream:
            stream.truncate(size)
            os.fsync(stream.fileno())
    except OSError as error:
        raise storage_error(error, path) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, durably."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        fsync_folder(new.parent)


def remove_litter(folder: Path, *, deep: bool = True) -> int:
    """Remove ``*.partial`` files in ``folder`` (``deep``: and below it); return how many.

    The writer's lock must be held: the files of a living writer look the same.
    """
    pattern = f"*{PARTIAL_SUFFIX}"
    found = folder.rglob(pattern) if deep else folder.glob(pattern)
    litter = [path for path in found if path.is_file() and not path.is_symlink()]
    for path in litter:
        _remove_quietly(path)
    return len(litter)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of ``folder`` (or its nearest parent)."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


@contextmanager
def exclusive_lock(path: Path, *, guarded: Path | None = None) -> Iterator[None]:
    """Hold an advisory lock on ``path`` for the block; a dead holder's lock is gone with it.

    ``guarded`` is what the lock protects, for the message (default: the folder of the lock file).

    The kernel drops a ``flock`` when its holder dies, so neither clocks nor process numbers decide.

    Raises
    ------
    LockedError
        When another process holds it; the message names that process and host.
    StorageError
        When the file system cannot lock.
    """
    try:
        make_folder(path.parent)
        stream = path.open("a+")
    except OSError as error:
        raise storage_error(error, path) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise LockedError(
                f"{guarded or path.parent} is being written by {holder}.",
                hint="Wait until it has finished, or stop it; what it has committed is kept.",
            ) from error
        except OSError as error:
            raise StorageError(
                f"{path}: this file system cannot lock files ({error.strerror}).",
                hint="Put the store on a local disk, or mount the file system with locking.",
            ) from error
        _sign(stream.fileno(), f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            _sign(stream.fileno(), "")


def _sign(descriptor: int, text: str) -> None:
    """Write into a lock file who holds it: for people only, so a full disk is no reason to fail."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode("utf-8"))  # opened for appending: at the end


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

_BLOCKED = "A file lies where a folder is needed. Choose another path."

_STORAGE_HINTS = {
    errno.ENOSPC: "The disk is full. Free some space and run the same command again; it resumes.",
    errno.EDQUOT: "The quota is used up. Free some space and run the same command again; it resumes.",
    errno.EACCES: "Check the owner and mode of the file and its folder.",
    errno.EPERM: "Check the owner and mode of the file and its folder.",
    errno.EROFS: "The file system is mounted read-only.",
    errno.ENOTDIR: _BLOCKED,
    errno.EEXIST: _BLOCKED,
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.EMFILE: "Too many files are open. Raise the limit in this shell: ulimit -n 4096",
}


def storage_error(error: OSError, path: Path) -> StorageError:
    """Our error for a refused write: the path, the system's reason, and the way out."""
    return _refused("write", error, path)


def read_error(error: OSError, path: Path) -> StorageError:
    """Our error for a file that is there but cannot be read: the path, the system's reason, and the way out."""
    return _refused("read", error, path)


def _refused(what: str, error: OSError, path: Path) -> StorageError:
    reason = error.strerror or str(error)
    hint = _STORAGE_HINTS.get(error.errno or 0, "Run the same command again once the disk works; it resumes.")
    return StorageError(f"Cannot {what} {path}: {reason}.", hint=hint)


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
