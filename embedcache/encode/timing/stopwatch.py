"""Turns the time that passes into a ``Cost``."""

from __future__ import annotations

import time

from embedcache.encode.timing.forecast import Cost


class Stopwatch:
    """Seconds on the clock, and of the processor, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        """What has passed."""
        return Cost(time.perf_counter() - self._wall, time.process_time() - self._cpu)
