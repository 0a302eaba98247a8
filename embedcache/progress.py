"""Turns the steps of long work into lines on stderr: a rich bar on a terminal, plain lines elsewhere.

Work reports to a ``Progress`` and knows nothing of terminals. ``Silent`` is the default of the Python API;
the commands pass a ``Terminal``.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

PLAIN_LINE_SECONDS = 10.0


class Progress(Protocol):
    """Where long work reports to."""

    def start(self, what: str, total: int) -> None:
        """Begin a piece of work of ``total`` steps (0: unknown); ends the one before."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report finished steps, with an optional short note such as a loss or a rate."""

    def finish(self) -> None:
        """End the current piece of work."""

    def say(self, line: str) -> None:
        """Print one line that stays."""


class Silent:
    """A ``Progress`` that says nothing."""

    def start(self, what: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""


class Terminal:
    """A ``Progress`` on stderr: a live bar on a terminal, else a plain line every ten seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and "NO_COLOR" not in os.environ
        self._bar: RichBar | None = None
        self._what, self._total, self._done = "", 0, 0
        self._started = self._last_line = 0.0

    def start(self, what: str, total: int) -> None:
        """Begin a piece of work; ends the one before."""
        self.finish()
        self._what, self._total, self._done = what, total, 0
        self._started = self._last_line = time.monotonic()
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = RichBar(*columns, console=self._console)
            self._bar.add_task(what, total=total or None, note="")
            self._bar.start()
        else:
            self._line(f"{what}: {total or 'an unknown number of'} steps to do")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar, or print a plain line when the last one is old enough."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=steps, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            self._line(
                f"{self._what}: {self._done}/{self._total or '?'} in {now - self._started:.0f} s {note}"
            )

    def finish(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._what and self._done:
            seconds = time.monotonic() - self._started
            self._line(f"{self._what}: {self._done} done in {seconds:.1f} s")
        self._what, self._done = "", 0

    def say(self, line: str) -> None:
        """Print one line that stays."""
        if self._live:
            self._console.print(line, markup=False)
        else:
            self._line(line)

    @staticmethod
    def _line(text: str) -> None:
        print(text.rstrip(), file=sys.stderr, flush=True)
