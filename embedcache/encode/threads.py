"""Turns functions into threads that never outlive a run by more than a hanging read."""

from __future__ import annotations

import threading
from collections.abc import Callable

POLL_SECONDS = 0.1
"""How often a thread that waits looks whether the run is over."""


def started(work: Callable[[], None], name: str) -> threading.Thread:
    """A thread at work; a daemon, so that a source that never answers cannot keep the process alive."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def join_surely(thread: threading.Thread) -> None:
    """Wait for a thread's end whatever signals come meanwhile; what they raise is raised afterwards."""
    interruption: BaseException | None = None
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
