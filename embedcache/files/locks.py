"""Turns "only one at a time" into advisory locks that die with their holder.

The kernel drops a ``flock`` when its holder dies, so neither clocks nor process numbers decide. One file is
locked for one thing (:func:`exclusive_lock`). For shards of a store (:func:`range_lock`) each living writer holds
a file of its own, which says which shards it has; who wants some looks through them while it holds the mutex.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import LockedError, StorageError
from embedcache.files import disk as _seam
from embedcache.files.folders import make_folder
from embedcache.files.held import SIGNATURE_BYTES, Held, holder_name
from embedcache.files.refusals import storage_error

MUTEX = "writer.lock"
"""File whose lock is held for moments, by whoever changes what concerns the whole store."""

CLAIMS = "locks"
"""Folder of the files that living writers hold."""

MUTEX_SECONDS = 30.0
"""How long the mutex is waited for: it is held while a journal is compacted, never while tiles are encoded."""

_POLL_SECONDS = 0.02
_NOT_OURS_TO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Claim:
    """What a living writer holds.

    Parameters
    ----------
    shards : range or None
        The shards it may write; None: the whole store.
    holder : str
        Process and host.
    """

    shards: range | None
    holder: str

    def overlaps(self, other: range | None) -> bool:
        """Whether both could write the same shard."""
        if self.shards is None or other is None:
            return True
        return max(self.shards.start, other.start) < min(self.shards.stop, other.stop)

    @property
    def words(self) -> str:
        """The shards in words."""
        if self.shards is None:
            return "the whole store"
        return f"shards {self.shards.start} to {self.shards.stop - 1}"


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
    held = _hold(path, guarded or path.parent, wait)
    try:
        held.sign(holder_name())
        yield
    finally:
        held.release(sign="")


@contextmanager
def mutex(folder: Path, *, guarded: Path) -> Iterator[None]:
    """Hold a store's mutex for the block, which must be short; waits for others for up to 30 seconds.

    Parameters
    ----------
    folder : Path
        The store's journal folder.
    guarded : Path
        The store, for the message.

    Raises
    ------
    LockedError, StorageError
        As of :func:`exclusive_lock`.
    """
    held = _hold(folder / MUTEX, guarded, MUTEX_SECONDS)
    try:
        held.sign(holder_name())  # stays: the next holder signs in its place, and it is taken once a shard
        yield
    finally:
        held.release()


@contextmanager
def range_lock(folder: Path, shards: range | None, *, guarded: Path) -> Iterator[Held]:
    """Hold shards of a store for writing, for the block; writers of other shards go on beside it.

    Yields the lock, of which a writer that is at work for long asks now and then whether it still is one.

    Parameters
    ----------
    folder : Path
        The store's journal folder.
    shards : range or None
        The shards; None: all there are and will be.
    guarded : Path
        The store, for the message.

    Raises
    ------
    LockedError
        When a living writer holds one of them; the message names its shards, process and host.
    StorageError
        When the file system cannot lock, or refuses the lock file.
    """
    own = folder / CLAIMS / f"{uuid.uuid4().hex}.lock"
    with mutex(folder, guarded=guarded):
        for claim in claims_under_mutex(folder):
            if claim.overlaps(shards):
                raise LockedError(
                    f"{guarded}: {claim.words} is being written by {claim.holder}."
                    if claim.shards is None
                    else f"{guarded}: {claim.words} are being written by {claim.holder}.",
                    hint="Wait until it has finished, or stop it; what it has committed is kept.",
                )
        held = _hold(own, guarded, 0.0)
        span = None if shards is None else [shards.start, shards.stop]
        held.sign(json.dumps({"shards": span, "holder": holder_name()}))
    try:
        yield held
    finally:
        held.release(remove=True)


def living_claims(folder: Path, *, guarded: Path | None = None) -> list[Claim]:
    """What living writers hold of a store; what dead ones left is removed.

    Raises
    ------
    LockedError, StorageError
        As of :func:`mutex`.
    """
    with mutex(folder, guarded=guarded or folder.parent):
        return claims_under_mutex(folder)


def claims_under_mutex(folder: Path) -> list[Claim]:
    """As :func:`living_claims`, with the mutex held: a new lock file is never seen before it is locked."""
    claims = []
    for path in sorted((folder / CLAIMS).glob("*.lock")):
        try:
            descriptor, free = _probe(path)
        except FileNotFoundError:  # its holder has just finished
            continue
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            if not free:
                claims.append(_read_claim(descriptor))
                continue
            with suppress(OSError):
                _seam.disk.unlink(path)  # a dead holder's
        finally:
            os.close(descriptor)
    return claims


def is_free(path: Path) -> bool:
    """Whether a lock file is there and no living process holds it; the mutex must be held.

    Raises
    ------
    StorageError
        When its file system cannot lock.
    """
    try:
        descriptor, free = _probe(path)
    except OSError:
        return False
    os.close(descriptor)
    return free


def _probe(path: Path) -> tuple[int, bool]:
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


def _read_claim(descriptor: int) -> Claim:
    """What a living holder wrote; where that cannot be understood (a full disk), it holds everything."""
    try:
        values = json.loads(os.pread(descriptor, SIGNATURE_BYTES, 0))
        span = values["shards"]
        shards = None if span is None else range(int(span[0]), int(span[1]))
        return Claim(shards, str(values["holder"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return Claim(None, "another process")


def _hold(path: Path, guarded: Path, wait: float) -> Held:
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
