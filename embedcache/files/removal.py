"""Removes files and folders durably: no link is followed, and of temporary files only ours are litter."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from embedcache.files import disk as _seam
from embedcache.files.refusals import storage_error

PARTIAL_SUFFIX = ".partial"

LITTER_NAME = re.compile(rf".+\.\d+{re.escape(PARTIAL_SUFFIX)}")
"""Names under which a file's bytes are gathered: ``NAME.PROCESS.partial``. A user's own is called otherwise."""


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
        remove_quietly(path)
    return len(litter)


def remove_quietly(path: Path) -> None:
    """Remove a file's name where that can be; not durably."""
    with suppress(OSError):
        _seam.disk.unlink(path)
