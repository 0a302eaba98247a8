"""Turns a path inside a store into an open file or its bytes, and follows no link on the way.

A store may come from a stranger. Whatever stands in it is opened only when it is a regular file and no part of its
path below the store is a link: so nothing outside the folder is read (or written), and nothing waits forever on
a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from embedcache.errors import CorruptionError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that nobody writes to must not wait
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 24


def open_inside(root: Path, path: Path) -> int:
    """Open a regular file inside a folder for reading.

    Parameters
    ----------
    root : Path
        The folder; may itself be reached by a link, as that is its owner's choice.
    path : Path
        A file below it.

    Returns
    -------
    int
        A descriptor, which the caller closes.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    CorruptionError
        When the file or a folder on the way is a link, or it is no regular file.
    OSError
        When the system refuses otherwise.
    """
    *folders, name = path.relative_to(root).parts
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = _open_at(here, folder, _FOLDER, path)
            os.close(here)
            here = below
        descriptor = _open_at(here, name, _FILE, path)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptionError(f"{path} is no regular file; a store holds nothing else.")
    return descriptor


def _open_at(folder: int, name: str, flags: int, path: Path) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        # a link gives ELOOP where a file, and ENOTDIR where a folder is asked for
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link_at(folder, name):
            raise _link(path, name) from error
        if error.errno == errno.ENXIO:  # a socket
            raise CorruptionError(f"{path} is no regular file; a store holds nothing else.") from error
        raise


def _is_link_at(folder: int, name: str) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _link(path: Path, name: str) -> CorruptionError:
    return CorruptionError(
        f"{path}: {name!r} is a link; a store holds no links, and none is followed.",
        hint="Put the real file or folder in its place.",
    )


def read_inside(root: Path, path: Path, limit: int) -> bytes:
    """Read a whole file inside a folder, as :func:`open_inside` opens it.

    Raises
    ------
    CorruptionError
        When it is a link, no regular file, or longer than ``limit`` bytes: nothing is read then.
    FileNotFoundError, OSError
        As of :func:`open_inside`.
    """
    descriptor = open_inside(root, path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptionError(f"{path}: {size:,} bytes, where at most {limit:,} can be right.")
        pieces = []
        while piece := os.read(descriptor, _PIECE):
            pieces.append(piece)
            limit -= len(piece)
            if limit < 0:
                raise CorruptionError(f"{path} grows while it is read.")
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def require_no_links(root: Path, path: Path) -> None:
    """Refuse to write through a link: :class:`CorruptionError` when ``path`` or a folder above it, below
    ``root``, is one."""
    here = root
    for name in path.relative_to(root).parts:
        here = here / name
        if here.is_symlink():
            raise _link(path, name)
