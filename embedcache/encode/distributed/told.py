"""Turns the progress of a task into messages to the coordinator."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from embedcache.encode.distributed.messages import SAID, STEPS

SECONDS_BETWEEN_STEPS = 0.5
"""A worker reports its steps no more often."""

Tell = Callable[[str, Any], None]
"""Takes the kind of a message, and what it says."""


class Told:
    """A ``Progress`` that sends what it is told to the coordinator, steps gathered to a few messages a second."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._steps, self._note = 0, ""
        self._sent = time.monotonic()
        self._lock = threading.Lock()

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Do nothing: the coordinator knows."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Gather steps; send them when the last ones are old enough."""
        with self._lock:
            self._steps, self._note = self._steps + steps, note
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_STEPS:
            self.flush()

    def finish(self) -> None:
        """Send what is left."""
        self.flush()

    def say(self, line: str) -> None:
        """Pass a line on."""
        self._tell(SAID, f"{socket.gethostname()}: {line}")

    def flush(self) -> None:
        """Send the steps gathered."""
        with self._lock:
            steps, note, self._steps = self._steps, self._note, 0
            self._sent = time.monotonic()
        if steps:
            with contextlib.suppress(Exception):  # a stream that closes: progress is worth no failure
                self._tell(STEPS, (steps, note))
