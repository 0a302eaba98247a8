"""Turns each step that changes a disk into one method: the seam at which the fault tests let steps fail.

Nothing else in the package changes a file of a store. ``disk`` is looked up at each call, so that a test can put
a failing, killing or recording disk in its place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


class Disk:
    """The real disk: each method is one system call that changes something, and nothing more."""

    def open_new(self, path: Path) -> int:
        """Make an empty file (or empty an old one) for writing; returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def open_kept(self, path: Path) -> int:
        """Open a file for reading and writing, made when missing; what it holds stays."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def write(self, descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        """Write pieces one after the other from ``offset`` on; returns how many bytes the system took."""
        return os.pwritev(descriptor, pieces, offset)

    def fsync(self, descriptor: int) -> None:
        """Make a file's content durable."""
        os.fsync(descriptor)

    def fsync_folder(self, folder: Path) -> None:
        """Make a folder's entries (new, renamed and removed names) durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut an open file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file; an older one of the new name is replaced in the same step."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which must not exist."""
        os.link(source, target)

    def mkdir(self, folder: Path) -> None:
        """Make a folder; one that is there is fine."""
        folder.mkdir(exist_ok=True)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        path.unlink()

    def rmdir(self, folder: Path) -> None:
        """Remove an empty folder."""
        folder.rmdir()


disk = Disk()
"""The disk that everything is written to."""


def set_disk(other: Disk) -> None:
    """Put another disk in the place of the real one; for fault tests only."""
    global disk
    disk = other
