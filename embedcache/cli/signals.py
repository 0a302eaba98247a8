"""Turns SIGINT and SIGTERM into an orderly end: the work is asked to stop, a second signal stops at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from embedcache.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether a signal wants the work to end; callable, as the pipeline's ``stop``."""

    def __init__(self) -> None:
        self._number: int | None = None

    def __call__(self) -> int | None:
        """The signal's number, or None."""
        return self._number

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: remember the first, stop at once on the second."""
        if self._number is not None:
            raise Interrupted("Stopped at once; what was committed stays.", signal_number=number)
        self._number = number


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the block the first signal is only noted: the work commits what it has and then ends."""
    interruption = Interruption()
    with _handlers(interruption.note):
        yield interruption


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within the block a signal raises ``Interrupted`` at once."""

    def raise_interrupted(number: int, _frame: FrameType | None) -> None:
        raise Interrupted("What was saved before stays.", signal_number=number)

    with _handlers(raise_interrupted):
        yield


@contextmanager
def _handlers(handler: object) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in SIGNALS]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in zip(SIGNALS, before, strict=True):
            signal.signal(number, old)
