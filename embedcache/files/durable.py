"""Turns bytes into durable files: temp, fsync, rename, fsync of the folder; append and fsync; remove."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from embedcache.errors import StorageError
from embedcache.files import disk as _seam
from embedcache.files.digests import Buffer
from embedcache.files.folders import make_folder, sync_name
from embedcache.files.refusals import storage_error

PARTIAL_SUFFIX = ".partial"

LITTER_NAME = re.compile(rf".+\.\d+{re.escape(PARTIAL_SUFFIX)}")
"""Names under which a file's bytes are gathered: ``NAME.PROCESS.partial``. A user's own is called otherwise."""

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
        When the disk refuses; an older file of that name is left as it was, unless only the last step, making
        the new name durable, was refused.
    """
    try:
        make_folder(path.parent)
        _seam.disk.replace(partial, path)
        _seam.disk.fsync_folder(path.parent)
    except OSError as error:
        _remove_quietly(partial)
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
        _remove_quietly(partial)


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
                _write_all(descriptor, group, written)
                _start_writing(descriptor, written, gathered)
                written, group, gathered = written + gathered, [], 0
        _write_all(descriptor, group, written)
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


def _write_all(descriptor: int, pieces: list[memoryview], offset: int) -> None:
    """Write all of the pieces, however few bytes the system takes at a time."""
    left = [piece for piece in pieces if len(piece)]
    while left:
        taken = _seam.disk.write(descriptor, left, offset)
        offset += taken
        while left and taken >= len(left[0]):
            taken -= len(left.pop(0))
        if taken:
            left[0] = left[0][taken:]


def append_line(path: Path, line: str, *, at: int | None = None) -> int:
    """Append one line to a file and make it durable before returning.

    A last line without its line break was never acknowledged (its writer was killed); it is cut off first.
    When the disk refuses, the file is cut back to where it was.

    Parameters
    ----------
    path : Path
        The file; made when missing.
    line : str
        Without its line break.
    at : int, optional
        Where the file's last whole line must end; when it ends elsewhere, nothing is written.

    Returns
    -------
    int
        Offset in the file at which the line begins.

    Raises
    ------
    StorageError
        When the disk refuses, or the file was written by somebody else.
    """
    try:
        make_folder(path.parent)
        descriptor = _seam.disk.open_kept(path)
        try:
            start = _append(descriptor, line.encode("utf-8") + b"\n", path, at)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        sync_name(path, status)  # the file may be a killed process's, who came as far as making it
    except OSError as error:
        raise storage_error(error, path) from error
    return start


def _append(descriptor: int, data: bytes, path: Path, at: int | None) -> int:
    start = _end_of_last_line(descriptor)
    if at not in (None, start):
        raise StorageError(
            f"{path} was written by somebody else, although it was locked.",
            hint="Put the store on a file system that locks, or see that only one writer runs.",
        )
    try:
        if os.fstat(descriptor).st_size > start:
            _seam.disk.truncate(descriptor, start)
        _write_all(descriptor, [memoryview(data)], start)
        _seam.disk.fsync(descriptor)
    except OSError:
        # whether the refusal comes from the write or the fsync: the line is not acknowledged and must not stay
        _seam.disk.truncate(descriptor, start)
        raise
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


def cut_file(path: Path, size: int) -> None:
    """Cut a file to its first ``size`` bytes, durably.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        descriptor = _seam.disk.open_kept(path)
        try:
            _seam.disk.truncate(descriptor, size)
            _seam.disk.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, path) from error


def sync_file(path: Path) -> None:
    """Make the content of a file durable that a killed process may have written.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        descriptor = _seam.disk.open_kept(path)
        try:
            _seam.disk.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, path) from error


def remove_file(path: Path) -> bool:
    """Remove a file's name (of a link: the link), durably; returns whether there was one.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        _seam.disk.unlink(path)
        _seam.disk.fsync_folder(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def remove_tree(root: Path) -> None:
    """Remove a folder and all below it; a link is removed, never what it points to.

    Raises
    ------
    StorageError
        When the disk refuses; what is left can be removed by a second try.
    """
    try:
        with os.scandir(root) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path))
            else:
                _seam.disk.unlink(Path(entry.path))
        _seam.disk.rmdir(root)
    except OSError as error:
        raise storage_error(error, root) from error


def remove_litter(folder: Path, *, deep: bool = True) -> int:
    """Remove the files of :data:`LITTER_NAME` in ``folder`` (``deep``: and below it); return how many.

    The writer's lock must be held: the files of a living writer look the same.
    """
    pattern = f"*{PARTIAL_SUFFIX}"
    found = folder.rglob(pattern) if deep else folder.glob(pattern)
    litter = [
        path
        for path in found
        if LITTER_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    ]
    for path in litter:
        _remove_quietly(path)
    return len(litter)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of ``folder`` (or its nearest parent)."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        _seam.disk.unlink(path)
