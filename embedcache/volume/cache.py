"""Turns repeated reads of neighbouring pixels into one decode: a bounded cache of decoded blocks.

A source is decoded in pieces much larger than what one read asks for (a compressed chunk, a whole JPEG).
Tiles that follow each other by number lie in the same pieces, so the last few pieces are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

CACHE_BYTES = 1 << 30
"""Decoded pixels that one open volume keeps at most (the newest block is kept whatever its size)."""


class BlockCache:
    """A thread-safe cache of arrays, least recently used out first.

    Parameters
    ----------
    limit_bytes : int
        Upper bound of the sum of the blocks' bytes; a single larger block is kept until the next one comes.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._blocks: OrderedDict[Hashable, npt.NDArray[Any]] = OrderedDict()
        self._gates: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def bytes_held(self) -> int:
        """Bytes of all blocks held now."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The block of ``key``; made by ``make()`` when it is not held, once for all threads that wait for it."""
        with self._lock:
            block = self._found(key)
            if block is not None:
                return block
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:
            with self._lock:
                block = self._found(key)
            if block is not None:
                return block
            try:
                block = make()
                block.flags.writeable = False
                self._keep(key, block)
            finally:
                with self._lock:
                    self._gates.pop(key, None)
        return block

    def clear(self) -> None:
        """Let go of all blocks."""
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def _found(self, key: Hashable) -> npt.NDArray[Any] | None:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def _keep(self, key: Hashable, block: npt.NDArray[Any]) -> None:
        with self._lock:
            self._blocks[key] = block
            self._bytes += block.nbytes
            while self._bytes > self._limit and len(self._blocks) > 1:
                _, old = self._blocks.popitem(last=False)
                self._bytes -= old.nbytes
