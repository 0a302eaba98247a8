"""Turns what the threads of a run measure into seconds by stage, and into the name of the stage that limits it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

STAGES = ("prepare", "read", "preprocess", "transfer", "encode", "quantise", "write")
"""In the order in which a tile goes through them; all but the first run beside each other."""

INPUT, WRITER = "input", "writer"
"""What the encoder may have to wait for."""

_UNNOTICED = 0.05
"""Share of the encoder's time that it may wait and still be the stage that limits."""


@dataclass(frozen=True)
class Span:
    """What a thread was at: ``begin`` is a time of ``time.perf_counter``."""

    stage: str
    thread: str
    begin: float
    seconds: float


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
        self._spans: list[Span] | None = None

    def record(self) -> list[Span]:
        """From here on keep each span of time too; they come into the list that is given."""
        self._spans = []
        return self._spans

    def stop_recording(self) -> None:
        """Keep sums only."""
        self._spans = None

    def add(self, stage: str, seconds: float, begin: float | None = None) -> None:
        """Add to a stage, from any thread; ``begin`` by ``time.perf_counter``, where the time is one span."""
        with self._lock:
            self.seconds[stage] += seconds
            self._keep(stage, seconds, begin)

    def _keep(self, stage: str, seconds: float, begin: float | None) -> None:
        if self._spans is not None and begin is not None:
            self._spans.append(Span(stage, threading.current_thread().name, begin, seconds))

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
            self.add(stage, time.perf_counter() - begin, begin)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the block's duration as waiting; by the encoder's thread only."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self.waits[what] += seconds
            self._keep(f"waits for the {what}", seconds, begin)

    def in_words(self) -> str:
        """Where the time went, in one line."""
        spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items())
        waited = " and ".join(f"{seconds:.1f} s for the {what}" for what, seconds in self.waits.items())
        return f"Seconds by stage: {spent}; limited by {self.bottleneck}. The encoder waited {waited}."

    @property
    def bottleneck(self) -> str:
        """``read``, ``preprocess``, ``encode`` or ``write``; empty before anything was encoded or waited for."""
        at_work = self.seconds["encode"] + self.seconds["quantise"]
        for_input, for_writer = self.waits[INPUT], self.waits[WRITER]
        if not at_work and not for_input and not for_writer:
            return ""
        # The writer is one thread: it limits when it has more to do, whether or not it works beside the encoder.
        if for_writer > for_input and self.seconds["write"] > at_work:
            return "write"
        if for_input <= _UNNOTICED * (at_work + for_input):
            return "encode"
        by_hand = self.seconds["preprocess"] + self.seconds["transfer"]
        return "read" if self.seconds["read"] >= by_hand else "preprocess"
