"""Turns a piece of work of many equal parts into threads that take one part after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from embedcache.errors import ConfigError


class Threads:
    """So many threads, this one among them, made when they are first needed; several callers may share them.

    Parameters
    ----------
    count : int

    Raises
    ------
    ConfigError
        When it is less than one.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"{count} threads cannot read; give at least 1.")
        self._count = count
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def each(self, parts: int, work: Callable[[int], None]) -> None:
        """Call ``work`` with 0 to ``parts - 1``, each once; what one of the calls raises is raised here."""
        left = iter(range(parts))  # taking the next of it is one step of the interpreter
        others = min(self._count, parts) - 1
        if others < 1:
            return _work_off(left, work)
        pool, futures = self._helpers(), list[Future[None]]()
        try:
            for _ in range(others):
                futures.append(pool.submit(_work_off, left, work))
            _work_off(left, work)
        finally:
            wait(futures)  # they write into the caller's memory
        for future in futures:
            future.result()
        return None

    def _helpers(self) -> ThreadPoolExecutor:
        """The helping threads; a process that was forked off has none of its parent's."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), ThreadPoolExecutor(self._count - 1, "embedcache-read")
            return self._pool[1]

    def close(self) -> None:
        """Let the threads go."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False)


def _work_off(left: Iterator[int], work: Callable[[int], None]) -> None:
    for part in left:
        work(part)
