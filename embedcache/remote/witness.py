"""Turns the refusal of a file into whether it is missing, by what the server says right after it.

Whoever may not list an object store is refused what is not there. So is everybody when a token ends, or when a
server has had enough: only metadata that is given *after* a refusal tells that the refusal was of the file alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from embedcache.errors import StorageError


class Witness:
    """A file that is there; threads may share it, and the answer to one serves all who were refused before it.

    Parameters
    ----------
    ask : callable
        Fetches that file.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask, self._lock = ask, threading.Lock()
        self._given = float("-inf")

    def gives(self, refused: float) -> bool:
        """Whether the server gave the file when it was asked after a moment of ``time.monotonic``."""
        with self._lock:
            if self._given >= refused:
                return True
            begin = time.monotonic()
            try:
                self._ask()
            except (FileNotFoundError, StorageError):
                return False
            self._given = begin
            return True
