"""Turns settings into a process that measures one variant, and its answers into figures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Protocol


class Told(Protocol):
    """What a process is told to measure."""

    def to_json(self) -> str:
        """As one line."""


class Child:
    """A process with one variant, ready to take turns.

    Parameters
    ----------
    settings : Told
        What it measures.
    module : str
        What it runs, as ``python -m`` does, and answers as :mod:`embedcache.bench.process` does.

    Attributes
    ----------
    not_run : str or None
        Why it cannot, or no longer can, take turns.
    ready : dict
        Its first answer, for example ``start_seconds`` and ``threads``; empty when it could not start.
    ended : dict
        Its last answer, once it has ended.
    """

    def __init__(self, settings: Told, *, module: str = "embedcache.bench.process") -> None:
        self.not_run: str | None = None
        self.ended: dict[str, Any] = {}
        self._said = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, settings.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.ready = self._answer()

    def turn(self) -> tuple[float, float] | None:
        """Seconds per image of one turn taken now, on the clock and of the processor; None when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("turn\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is seen where its answer is read
        found = self._answer()
        return (found["seconds"], found["cpu_seconds"]) if "seconds" in found else None

    def end(self) -> int | None:
        """End the process; bytes of memory that it took at most."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.ended = self._answer()
        self._process.wait()
        return self.ended.get("peak_memory_bytes")

    def _answer(self) -> dict[str, Any]:
        """The next answer; without one, the reason is kept and nothing is answered."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"not_run": self._how_it_died()}
        self.not_run = answer.pop("not_run", None)
        return answer

    def _how_it_died(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return f"its process ended with {code}" + (f": {lines[-1][:200]}" if lines else "")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process behind."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                stream.close()
