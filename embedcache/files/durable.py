"""Turns bytes into durable files: temp, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from embedcache.files import disk as _seam
from embedcache.files.digests import Buffer
from embedcache.files.folders import make_folder
from embedcache.files.refusals import storage_error
from embedcache.files.removal import PARTIAL_SUFFIX, remove_quietly

GATHERED_BYTES = 8 << 20
"""Pieces are handed to the system in groups of about so many bytes, so that a checksum is no write of its own."""

GATHERED_PIECES = 512  # below the system's limit of 1,024

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


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
    """Write and fsync a file that nobody looks at yet; on failure nothing is left.

    Parameters
    ----------
    partial : Path
        As of :func:`partial_name`.
    pieces : iterable of bytes
        The content, in order; each must stay as it is until the iteration has gone on by 8 MiB.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        make_folder(partial.parent)
        return _write_and_sync(partial, pieces)
    except OSError as error:
        remove_quietly(partial)
        raise storage_error(error, partial) from error
    except BaseException:
        remove_quietly(partial)
        raise


def publish_file(partial: Path, path: Path) -> None:
    """Give a staged file its final name, durably; an older file of that name is replaced in one step.

    Raises
    ------
    StorageError
        When the disk refuses; an older file of that name is left as it was, unless only the last step, making
        the new name durable, was refused.
    """
    try:
        make_folder(path.parent)
        _seam.disk.replace(partial, path)
        _seam.disk.fsync_folder(path.parent)
    except OSError as error:
        remove_quietly(partial)
        raise storage_error(error, path) from error


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
        _seam.disk.fsync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        remove_quietly(partial)


def _publish_new(partial: Path, path: Path) -> None:
    """Give a file its final name unless that is taken: unlike rename, link refuses to replace."""
    try:
        _seam.disk.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        _seam.disk.replace(partial, path)


def _write_and_sync(path: Path, pieces: Iterable[Buffer]) -> int:
    descriptor = _seam.disk.open_new(path)
    try:
        written = 0
        group: list[memoryview] = []
        gathered = 0
        for piece in pieces:
            view = memoryview(piece).cast("B")
            group.append(view)
            gathered += len(view)
            if gathered >= GATHERED_BYTES or len(group) >= GATHERED_PIECES:
                write_all(descriptor, group, written)
                _start_writing(descriptor, written, gathered)
                written, group, gathered = written + gathered, [], 0
        write_all(descriptor, group, written)
        _seam.disk.fsync(descriptor)
    finally:
        os.close(descriptor)
    return written + gathered


def _start_writing(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin with bytes that are in the system's cache only: fsync then waits for the last ones.

    A hint, so that nothing depends on it. Pages that wait for the disk stay in the cache.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def write_all(descriptor: int, pieces: list[memoryview], offset: int) -> None:
    """Write all of the pieces, however few bytes the system takes at a time."""
    left = [piece for piece in pieces if len(piece)]
    while left:
        taken = _seam.disk.write(descriptor, left, offset)
        offset += taken
        while left and taken >= len(left[0]):
            taken -= len(left.pop(0))
        if taken:
            left[0] = left[0][taken:]


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of ``folder`` (or its nearest parent)."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize
