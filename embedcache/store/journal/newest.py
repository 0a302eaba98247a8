"""Turns a journal that somebody may be writing into its newest state, read only when there is something new."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from embedcache.errors import EmbedcacheError
from embedcache.store import layout
from embedcache.store.journal.state import StoreState

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

Marks = tuple[tuple[str, int, int], ...]

PATIENCE_SECONDS = 1.0
"""How long a shard may be neither the old nor the new one after its replacement was announced."""

_PAUSE_SECONDS = 0.1


class NewestState:
    """The journal as it is on disk now; threads may share it.

    Parameters
    ----------
    store : EmbeddingStore
        Its snapshot is what there was at first; it is not changed.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: Marks | None = None  # the snapshot may be older than any look at the files
        self._since = time.monotonic()
        self._state = store.state

    def state(self) -> StoreState:
        """The newest state; the older one again where the journal has not changed or cannot be read just now."""
        with self._lock:
            marks = self._marks()
            if marks != self._seen:
                with suppress(EmbedcacheError):  # what is damaged there was told, or will be
                    self._state = self._store.read_state()
                    self._seen, self._since = marks, time.monotonic()
            return self._state

    def looks(self, undecided: Callable[[StoreState], bool]) -> Iterator[StoreState]:
        """The newest state; while something in it is undecided, again and again.

        The end is about a second after the last change of the journal: what was announced would be done by then.
        """
        while True:
            state = self.state()
            yield state
            if not undecided(state) or time.monotonic() >= self._since + PATIENCE_SECONDS:
                return
            time.sleep(_PAUSE_SECONDS)

    def _marks(self) -> Marks:
        """Names, numbers and lengths of the journal's files: each record changes one of them."""
        marks = []
        for path in sorted((self._store.path / layout.JOURNAL).glob("*.jsonl")):
            with suppress(FileNotFoundError):  # compacted away just now
                status = path.stat()
                marks.append((path.name, status.st_ino, status.st_size))
        return tuple(marks)
