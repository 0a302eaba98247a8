"""Turns lines into the durable end of a file that is kept; cuts off or makes durable what a killed writer left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedcache.errors import StorageError
from embedcache.files import disk as _seam
from embedcache.files.durable import write_all
from embedcache.files.folders import make_folder, sync_name
from embedcache.files.refusals import storage_error


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
    with _refusals_named(path):
        make_folder(path.parent)
    with _kept_open(path) as descriptor:
        start = _append(descriptor, line.encode("utf-8") + b"\n", path, at)
        sync_name(
            path, os.fstat(descriptor)
        )  # the file may be a killed process's, who came as far as making it
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
        write_all(descriptor, [memoryview(data)], start)
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
    with _kept_open(path) as descriptor:
        _seam.disk.truncate(descriptor, size)
        _seam.disk.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that a killed process may have written.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    with _kept_open(path) as descriptor:
        _seam.disk.fsync(descriptor)


@contextmanager
def _kept_open(path: Path) -> Iterator[int]:
    """The descriptor of a file that is kept, for the block; what the disk refuses there names the file."""
    with _refusals_named(path):
        descriptor = _seam.disk.open_kept(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error
