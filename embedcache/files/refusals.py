"""Turns a system's refusal into our error: the path, the system's reason, and the way out."""

from __future__ import annotations

import errno
from pathlib import Path

from embedcache.errors import StorageError

_BLOCKED = "A file lies where a folder is needed. Choose another path."

_HINTS = {
    errno.ENOSPC: "The disk is full. Free some space and run the same command again; it resumes.",
    errno.EDQUOT: "The quota is used up. Free some space and run the same command again; it resumes.",
    errno.EFBIG: "A limit on file sizes was reached (ulimit -f, or the file system's own).",
    errno.EACCES: "Check the owner and mode of the file and its folder.",
    errno.EPERM: "Check the owner and mode of the file and its folder.",
    errno.EROFS: "The file system is mounted read-only.",
    errno.ENOTDIR: _BLOCKED,
    errno.EEXIST: _BLOCKED,
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.EMFILE: "Too many files are open. Raise the limit in this shell: ulimit -n 4096",
    errno.ELOOP: "A link lies where a file or folder of its own is needed; it was not followed.",
}


_OF_THE_READER = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}


def is_readers_fault(error: OSError) -> bool:
    """Whether a refused read says nothing of the file: this user may not read it, or has too many files open."""
    return error.errno in _OF_THE_READER


def storage_error(error: OSError, path: Path) -> StorageError:
    """Our error for a refused write: the path, the system's reason, and the way out."""
    return _refused("write", error, path)


def read_error(error: OSError, path: Path) -> StorageError:
    """Our error for a file that is there but cannot be read: the path, the system's reason, and the way out."""
    return _refused("read", error, path)


def _refused(what: str, error: OSError, path: Path) -> StorageError:
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0, "Run the same command again once the disk works; it resumes.")
    return StorageError(f"Cannot {what} {path}: {reason}.", hint=hint)
