"""Turns "only one at a time" into locks over a store: its mutex, and ranges of its shards.

For shards (:func:`range_lock`) each living writer holds a file of its own, which says which shards it has; who
wants some looks through them while it holds the mutex.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import LockedError
from embedcache.files import disk as _seam
from embedcache.files.flock import hold, probe
from embedcache.files.held import SIGNATURE_BYTES, Held, holder_name
from embedcache.files.refusals import storage_error

MUTEX = "writer.lock"
"""File whose lock is held for moments, by whoever changes what concerns the whole store."""

CLAIMS = "locks"
"""Folder of the files that living writers hold."""

MUTEX_SECONDS = 30.0
"""How long the mutex is waited for: it is held while a journal is compacted, never while tiles are encoded."""


@dataclass(frozen=True)
class Claim:
    """What a living writer holds.

    Parameters
    ----------
    shards : range or None
        The shards it may write; None: the whole store.
    holder : str
        Process and host.
    since : str
        When it took the lock, local time; empty when that is not known.
    """

    shards: range | None
    holder: str
    since: str = ""

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
        if len(self.shards) == 1:
            return f"shard {self.shards.start}"
        return f"shards {self.shards.start} to {self.shards.stop - 1}"

    @property
    def sentence(self) -> str:
        """Who writes what, and since when, without a full stop."""
        are = "is" if self.shards is None or len(self.shards) == 1 else "are"
        since = f" since {self.since}" if self.since else ""
        return f"{self.words} {are} being written by {self.holder}{since}"


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
    held = hold(folder / MUTEX, guarded, MUTEX_SECONDS)
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
        _refuse_held(folder, shards, guarded)
        held = hold(own, guarded, 0.0)
        span = None if shards is None else [shards.start, shards.stop]
        held.sign(json.dumps({"shards": span, "holder": holder_name()}))
    try:
        yield held
    finally:
        held.release(remove=True)


def require_free(folder: Path, shards: range | None, *, guarded: Path) -> None:
    """Refuse what :func:`range_lock` would refuse now, and hold nothing: to be told before work, not after it.

    Raises
    ------
    LockedError, StorageError
        As of :func:`range_lock`.
    """
    with mutex(folder, guarded=guarded):
        _refuse_held(folder, shards, guarded)


def _refuse_held(folder: Path, shards: range | None, guarded: Path) -> None:
    for claim in claims_under_mutex(folder):
        if claim.overlaps(shards):
            raise LockedError(
                f"{guarded}: {claim.sentence}.",
                hint="Wait until it has finished, or stop it; what it has committed is kept.",
            )


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
            descriptor, free = probe(path)
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


def _read_claim(descriptor: int) -> Claim:
    """What a living holder wrote; where that cannot be understood (a full disk), it holds everything."""
    try:
        values = json.loads(os.pread(descriptor, SIGNATURE_BYTES, 0))
        span = values["shards"]
        shards = None if span is None else range(int(span[0]), int(span[1]))
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.fstat(descriptor).st_mtime))
        return Claim(shards, str(values["holder"]), since)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return Claim(None, "another process")
