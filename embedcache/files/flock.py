"""Turns a file into an advisory lock that dies with its holder, where the file system can do that.

The kernel drops a ``flock`` when its holder dies, so neither clocks nor process numbers decide.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedcache.errors import LockedError, StorageError
from embedcache.files import disk as _seam
from embedcache.files.folders import make_folder
from embedcache.files.held import SIGNATURE_BYTES, Held, holder_name
from embedcache.files.refusals import storage_error

_POLL_SECONDS = 0.02
_NOT_OURS_TO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def exclusive_lock(path: Path, *, guarded: Path | None = None, wait: float = 0.0) -> Iterator[None]:
    """Hold an advisory lock on ``path`` for the block; a dead holder's lock is gone with it.

    Parameters
    ----------
    path : Path
        The lock file; made when missing, and left there.
    guarded : Path, optional
        What the lock protects, for the message; by default the folder of the lock file.
    wait : float
        Seconds for which a held lock is tried again.

    Raises
    ------
    LockedError
        When another process holds it; the message names that process and host.
    StorageError
        When the file system cannot lock.
    """
    held = hold(path, guarded or path.parent, wait)
    try:
        held.sign(holder_name())
        yield
    finally:
        held.release(sign="")


def hold(path: Path, guarded: Path, wait: float) -> Held:
    """Take the lock of a file, which is made when missing."""
    try:
        make_folder(path.parent)
        descriptor = _seam.disk.open_kept(path)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        _flock(descriptor, path, guarded, time.monotonic() + wait)
        _require_real(path)
    except BaseException:
        os.close(descriptor)
        raise
    return Held(path, descriptor)


def _flock(descriptor: int, path: Path, guarded: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= until:
                holder = os.pread(descriptor, SIGNATURE_BYTES, 0).decode("utf-8", "replace").strip()
                raise LockedError(
                    f"{guarded} is being written by {holder or 'another process'}.",
                    hint="Wait until it has finished, or stop it; what it has committed is kept.",
                ) from error
        except OSError as error:
            raise _cannot_lock(path, f"refuses to lock files ({error.strerror})") from error
        time.sleep(_POLL_SECONDS)


def _require_real(path: Path) -> None:
    """Some network file systems grant every lock to everybody; a second one on a held file must be refused."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
    raise _cannot_lock(path, "grants the same lock twice")


def _cannot_lock(path: Path, fault: str) -> StorageError:
    return StorageError(
        f"{path}: its file system ({_file_system(path)}) {fault}; two writers could not be told apart.",
        hint="Put the store on a local disk, or mount the file system with locking (Lustre: -o flock).",
    )


def _file_system(path: Path) -> str:
    """Type and mount point of a path's file system, as far as the system tells."""
    best = ("", "of unknown type")
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            before, _, after = line.partition(" - ")
            point = before.split()[4].encode().decode("unicode_escape")
            if path.absolute().is_relative_to(point) and len(point) >= len(best[0]):
                best = (point, f"{after.split()[0]}, mounted at {point}")
    return best[1]


def is_free(path: Path) -> bool:
    """Whether a lock file is there and no living process holds it; the mutex must be held.

    Raises
    ------
    StorageError
        When its file system cannot lock.
    """
    try:
        descriptor, free = probe(path)
    except OSError:
        return False
    os.close(descriptor)
    return free


def probe(path: Path) -> tuple[int, bool]:
    """A descriptor of a lock file, and whether its lock was free (and is then held by the descriptor)."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, os.O_RDWR | flags)  # NFS locks only what is open for writing
    except OSError as error:
        if error.errno not in _NOT_OURS_TO_WRITE:
            raise
        descriptor = os.open(path, os.O_RDONLY | flags)  # another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return descriptor, False
    except OSError as error:
        os.close(descriptor)
        raise _cannot_lock(path, f"refuses to lock files ({error.strerror})") from error
    return descriptor, True
