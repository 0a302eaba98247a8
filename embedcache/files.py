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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from embedcache.errors import LockedError, StorageError

PARTIAL_SUFFIX = ".partial"

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer) -> int:
    """CRC-32C (Castagnoli) of ``data``, as Zarr's ``crc32c`` codec stores it."""
    return int(google_crc32c.value(bytes(data) if isinstance(data, bytearray) else data))


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
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        make_folder(path.parent)
        written = _write_and_sync(partial, pieces)
        partial.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        _remove_quietly(partial)
        raise storage_error(error, path) from error
    return written


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
        When ``path`` exists; it is left as it is. Of several processes exactly one succeeds.
    StorageError
        When the disk refuses.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        make_folder(path.parent)
        _write_and_sync(partial, [data])
        os.link(partial, path)  # unlike rename, link refuses to replace
        fsync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        _remove_quietly(partial)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file and make it durable before returning.

    A torn last line, left by a killed writer, is closed first by a line break so that it cannot swallow ours.
    """
    try:
        make_folder(path.parent)
        existed = path.exists()
        with path.open("a+b") as stream:
            stream.seek(0, os.SEEK_END)
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(line.encode("utf-8") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if not existed:
            fsync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents; durable through the fsync of what is written into it."""
    folder.mkdir(parents=True, exist_ok=True)


def remove_litter(folder: Path) -> int:
    """Remove ``*.partial`` files below ``folder`` (the writer's lock must be held); return how many."""
    litter = [path for path in folder.rglob(f"*{PARTIAL_SUFFIX}") if path.is_file() and not path.is_symlink()]
    for path in litter:
        _remove_quietly(path)
    return len(litter)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of ``folder`` (or its nearest parent)."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on ``path`` for the block; a dead holder's lock is gone with it.

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
                f"{path.parent} is being written by {holder}.",
                hint="Wait until it has finished, or stop it; what it has committed is kept.",
            ) from error
        except OSError as error:
            raise StorageError(
                f"{path}: this file system cannot lock files ({error.strerror}).",
                hint="Put the store on a local disk, or mount the file system with locking.",
            ) from error
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            stream.seek(0)
            stream.truncate()
            stream.flush()


_STORAGE_HINTS = {
    errno.ENOSPC: "The disk is full. Free some space and run the same command again; it resumes.",
    errno.EDQUOT: "The quota is used up. Free some space and run the same command again; it resumes.",
    errno.EACCES: "Permission was denied. Check the owner and mode of the folder.",
    errno.EPERM: "Permission was denied. Check the owner and mode of the folder.",
    errno.EROFS: "The file system is mounted read-only.",
}


def storage_error(error: OSError, path: Path) -> StorageError:
    """Our error for a refused write: the path, the system's reason, and the way out."""
    reason = error.strerror or str(error)
    hint = _STORAGE_HINTS.get(error.errno or 0, "Run the same command again once the disk works; it resumes.")
    return StorageError(f"Cannot write {path}: {reason}.", hint=hint)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return
