"""Turns the descriptor of a locked file into a ``Held``: signed, known to be a lock still, never a child's."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from embedcache.errors import StorageError
from embedcache.files import disk as _seam
from embedcache.files.refusals import storage_error

SIGNATURE_BYTES = 4096
"""Bytes of a lock file that are read: who holds it, and what."""

_open: set[int] = set()
"""Descriptors that hold a lock in this process. A forked child closes its copies: it holds none of them."""


def _forget() -> None:
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_forget)


class Held:
    """A lock that is held, by the process that took it and by no child of it.

    Parameters
    ----------
    path : Path
        The lock file.
    descriptor : int
        Holds its lock until it is closed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._process = os.getpid()
        _open.add(descriptor)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that took it."""
        return os.getpid() == self._process

    def require(self) -> None:
        """Refuse to go on with a lock that is no longer one.

        Raises
        ------
        StorageError
            When its file was removed, so that somebody else may hold another; or in a forked child.
        """
        if not self.is_ours:
            raise StorageError(f"{self.path} is held by the process that this one was forked from.")
        try:
            there = os.fstat(self._descriptor).st_nlink > 0
        except OSError as error:
            if error.errno != errno.ESTALE:  # of a network file system: it was removed elsewhere
                raise storage_error(error, self.path) from error
            there = False
        if not there:
            raise StorageError(
                f"{self.path}: its lock file was removed, so that another process may be writing too.",
                hint="Leave a store's locks alone; run the same command again, it resumes.",
            )

    def sign(self, text: str) -> None:
        """Write into the file who holds it. A full disk is no reason to fail."""
        with suppress(OSError):
            data = text.encode("utf-8")
            if os.pread(self._descriptor, SIGNATURE_BYTES, 0) == data:
                return
            _seam.disk.truncate(self._descriptor, 0)
            if data:
                _seam.disk.write(self._descriptor, [memoryview(data)], 0)

    def release(self, *, sign: str | None = None, remove: bool = False) -> None:
        """Let go, after a last signature or the removal of the file; a forked child has nothing to let go."""
        if not self.is_ours:
            return
        if sign is not None:
            self.sign(sign)
        if remove:
            with suppress(OSError):
                _seam.disk.unlink(self.path)
        _open.discard(self._descriptor)
        os.close(self._descriptor)


def holder_name() -> str:
    """This process and this machine, in the words by which a lock and a journal record name them."""
    return f"process {os.getpid()} on {socket.gethostname()}"
