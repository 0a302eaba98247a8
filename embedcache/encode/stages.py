"""Turns what the threads of a run measure into seconds by stage, and into the name of the stage that limits it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

STAGES = ("prepare", "read", "preprocess", "transfer", "encode", "quantise", "write")
"""In the order in which a tile goes through them; all but the first run beside each other."""

INPUT, WRITER = "input", "writer"
"""What the encoder may have to wait for."""

_UNNOTICED = 0.05
"""Share of the encoder's time that it may wait and still be the stage that limits."""


class Stages:
    """Seconds spent per stage of one run. The stages overlap, so that their sum exceeds the run's time.

    Attributes
    ----------
    seconds : dict of str to float
        By stage, of all threads that work at it.
    waits : dict of str to float
        Seconds for which the encoder waited for ``input``, and for the ``writer``.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.waits = dict.fromkeys((INPUT, WRITER), 0.0)
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage, from any thread."""
        with self._lock:
            self.seconds[stage] += seconds

    def merge(self, seconds: Mapping[str, float], waits: Mapping[str, float]) -> None:
        """Add what other processes measured."""
        with self._lock:
            for stage, value in seconds.items():
                self.seconds[stage] += value
            for what, value in waits.items():
                self.waits[what] += value

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's duration to ``stage``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - begin)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the block's duration as waiting; by the encoder's thread only."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.waits[what] += time.perf_counter() - begin

    @property
    def bottleneck(self) -> str:
        """``read``, ``preprocess``, ``encode`` or ``write``; empty before anything was encoded or waited for."""
        at_work = self.seconds["encode"] + self.seconds["quantise"]
        waited = sum(self.waits.values())
        if not at_work and not waited:
            return ""
        if waited <= _UNNOTICED * (at_work + waited):
            return "encode"
        if self.waits[WRITER] > self.waits[INPUT]:
            return "write"
        by_hand = self.seconds["preprocess"] + self.seconds["transfer"]
        return "read" if self.seconds["read"] >= by_hand else "preprocess"
