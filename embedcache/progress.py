"""Turns the steps of long work into lines on stderr: a rich bar on a terminal, plain lines or JSON elsewhere.

Work reports to a ``Progress`` and knows nothing of terminals. ``Silent`` is the default of the Python API;
the commands pass a ``Terminal``, or ``JsonLines`` where a machine reads along. Both tell how many steps are done
in a second, how long the rest will take, and what the work says of itself: a loss, or the stage that limits it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBar

PLAIN_LINE_SECONDS = 10.0
PACE_SECONDS = 60.0
"""The pace is that of the last so many seconds."""

LIMITS = ("read", "preprocess", "encode", "write")
"""A note that is one of these names the stage that limits the work."""


class Progress(Protocol):
    """Where long work reports to."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work of ``total`` steps (0: unknown), of which some were done; ends the one before."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report finished steps, with an optional short note such as a loss, or the stage that limits."""

    def finish(self) -> None:
        """End the current piece of work."""

    def say(self, line: str) -> None:
        """Print one line that stays."""


class Silent:
    """A ``Progress`` that says nothing."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""


class Pace:
    """How fast a piece of work goes, and how long the rest will take at that pace.

    Parameters
    ----------
    total : int
        Steps in all; 0 when it is not known.
    now : float
        When it began, in seconds of any clock.
    done : int
        Steps that an earlier time had done, which say nothing of the pace.

    Attributes
    ----------
    first : int
        Steps that were done when it began.
    """

    def __init__(self, total: int, now: float, done: int = 0) -> None:
        self.total, self.first, self.done, self.began = total, done, done, now
        self._seen: deque[tuple[float, int]] = deque([(now, done)])

    def add(self, steps: int, now: float) -> None:
        """Count finished steps."""
        self.done += steps
        if now - self._seen[-1][0] >= PACE_SECONDS / 60:
            self._seen.append((now, self.done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= PACE_SECONDS:
            self._seen.popleft()

    def per_second(self, now: float) -> float:
        """Steps in a second, of late; 0 while none was done, or more were lost with a worker."""
        then, done = self._seen[0]
        return max(self.done - done, 0) / (now - then) if now > then else 0.0

    def left(self, now: float) -> float | None:
        """Seconds until the end at this pace; None when nobody knows."""
        pace = self.per_second(now)
        return max(self.total - self.done, 0) / pace if self.total and pace > 0 else None

    def count(self, now: float) -> str:
        """Steps of all, and the time they took: ``4/9 in 2 s``, or ``7/9, 3 of them in 2 s`` after some before."""
        of, took = f"{self.done}/{self.total or '?'}", f"in {now - self.began:.0f} s"
        return f"{of}, {self.done - self.first} of them {took}" if self.first else f"{of} {took}"

    def words(self, now: float, note: str) -> str:
        """Pace, rest and note as people read them: ``2.50/s, 40 s left, limited by encode``."""
        pace, left = self.per_second(now), self.left(now)
        parts = [
            f"{pace:.3g}/s" if pace else "",
            f"{readable_seconds(left)} left" if left else "",
            f"limited by {note}" if note in LIMITS else note,
        ]
        return ", ".join(part for part in parts if part)


class Terminal:
    """A ``Progress`` on stderr: a live bar on a terminal, else a plain line every ten seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and "NO_COLOR" not in os.environ
        self._bar: RichBar | None = None
        self._what, self._note, self._last_line = "", "", 0.0
        self._pace = Pace(0, 0.0)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work; ends the one before."""
        self.finish()
        self._last_line = time.monotonic()
        self._what, self._note, self._pace = what, "", Pace(total, self._last_line, done)
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[words]}", markup=False),
            )
            self._bar = RichBar(*columns, console=self._console)
            self._bar.add_task(what, total=total or None, completed=done, words="")
            self._bar.start()
        else:
            of = f", {done} of {total} are done" if done else ""
            self._line(f"{what}: {total - done or 'an unknown number'} to do{of}")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar, or print a plain line when the last one is old enough."""
        now = time.monotonic()
        self._pace.add(steps, now)
        self._note = note or self._note
        if self._bar is not None:
            words = self._pace.words(now, self._note)
            self._bar.update(self._bar.task_ids[0], advance=steps, words=words)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            self._line(f"{self._what}: {self._pace.count(now)}, {self._pace.words(now, self._note)}")

    def finish(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._what and self._pace.done > self._pace.first:
            seconds = time.monotonic() - self._pace.began
            self._line(f"{self._what}: {self._pace.done - self._pace.first} done in {seconds:.1f} s")
        self._what = ""

    def say(self, line: str) -> None:
        """Print one line that stays."""
        if self._live:
            self._console.print(line, markup=False)
        else:
            self._line(line)

    @staticmethod
    def _line(text: str) -> None:
        print(text.rstrip(), file=sys.stderr, flush=True)


class JsonLines:
    """A ``Progress`` on stderr for machines: one JSON object a line, every ten seconds while steps are done.

    Each holds ``event`` (``start``, ``progress``, ``finish`` or ``say``), ``time`` (seconds since 1970) and
    ``what``; those of steps also ``tiles_done``, ``tiles_total``, ``tiles_per_second``, ``eta_seconds``,
    ``bottleneck`` and ``note``, null where it is not known.
    """

    def __init__(self) -> None:
        self._what, self._note, self._last_line = "", "", 0.0
        self._pace = Pace(0, 0.0)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work; ends the one before."""
        self.finish()
        self._last_line = time.monotonic()
        self._what, self._note, self._pace = what, "", Pace(total, self._last_line, done)
        self._steps("start")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count, and write a line when the last one is old enough."""
        now = time.monotonic()
        self._pace.add(steps, now)
        self._note = note or self._note
        if now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            self._steps("progress")

    def finish(self) -> None:
        """Write what was done."""
        if self._what:
            self._steps("finish")
        self._what = ""

    def say(self, line: str) -> None:
        """Write a line with the words in ``text``."""
        self._write("say", text=line)

    def _steps(self, event: str) -> None:
        now, limit = time.monotonic(), self._note in LIMITS
        self._write(
            event,
            tiles_done=self._pace.done,
            tiles_total=self._pace.total or None,
            tiles_per_second=round(self._pace.per_second(now), 4),
            eta_seconds=None if (left := self._pace.left(now)) is None else round(left, 1),
            bottleneck=self._note if limit else None,
            note=None if limit else self._note or None,
        )

    def _write(self, event: str, **fields: Any) -> None:
        line = {"event": event, "time": round(time.time(), 3), "what": self._what or None, **fields}
        print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


def readable_seconds(seconds: float) -> str:
    """A duration as people read it: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 36 else f"{hours // 24} d {hours % 24} h"
