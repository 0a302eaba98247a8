"""Turns folders and names into durable ones, also those that a process made that was killed before its fsync."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from embedcache.files import disk as _seam
from embedcache.files.refusals import storage_error

_known: set[tuple[str, int, int]] = set()
"""Names, with device and number, that this process knows to be durable: it fsynced the folder they stand in."""


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (new and renamed names) durable."""
    _seam.disk.fsync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, durably.

    A folder that is there may have been made by a process that was killed before its name was durable: so the
    parents of folders that are there are fsynced too, once per process, as far up as this user may have made them.
    """
    unsure: list[tuple[Path, os.stat_result | None]] = []
    here = folder
    while True:
        status = _folder_status(here)
        if status is not None and (_identity(here, status) in _known or not _may_be_ours(here, status)):
            break
        unsure.append((here, status))
        here = here.parent
    for new, status in reversed(unsure):
        if status is None:
            _seam.disk.mkdir(new)
        _seam.disk.fsync_folder(new.parent)
        _known.add(_identity(new, new.stat()))


def sync_name(path: Path, status: os.stat_result) -> None:
    """Make the name of an open file durable, once per process; ``OSError`` when the disk refuses."""
    name = _identity(path, status)
    if name not in _known:
        _seam.disk.fsync_folder(path.parent)
        _known.add(name)


def _folder_status(path: Path) -> os.stat_result | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISDIR(status.st_mode) else None


def _identity(path: Path, status: os.stat_result) -> tuple[str, int, int]:
    return str(path), status.st_dev, status.st_ino


def _may_be_ours(folder: Path, status: os.stat_result) -> bool:
    """Whether this user can have made a folder: not a mount point, nor in a parent that is closed to us."""
    above = folder.parent
    if above == folder:
        return False
    try:
        return above.stat().st_dev == status.st_dev and os.access(above, os.R_OK | os.W_OK)
    except OSError:
        return False


def sync_names(folder: Path) -> None:
    """Make durable what a killed process may have renamed in a folder, and the folder itself; if it is there.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    try:
        if folder.is_dir():
            make_folder(folder)
            _seam.disk.fsync_folder(folder)
    except OSError as error:
        raise storage_error(error, folder) from error
