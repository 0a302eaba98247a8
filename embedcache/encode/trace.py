"""Turns the first batches of a run into a Chrome trace: what each thread was at, and the encoder's operations.

The file opens in Perfetto or chrome://tracing.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from embedcache.encode.stages import Span, Stages
from embedcache.files import write_file

TRACED_BATCHES = 8

_ANCHOR = "embedcache: the clocks of both traces"


@contextmanager
def tracing(path: str | None, stages: Stages, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Trace from here on; what it gives is to be called after each batch. Without a path, nothing is done."""
    if path is None:
        yield lambda: None
        return
    trace = _Trace(Path(path), stages, say)
    try:
        yield trace.next_batch
    finally:
        trace.end()


class _Trace:
    def __init__(self, path: Path, stages: Stages, say: Callable[[str], None]) -> None:
        self._path, self._stages, self._say, self._left = path, stages, say, TRACED_BATCHES
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write into our progress
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities)
        self._spans: list[Span] = stages.record()
        self._profile.start()
        for _ in range(3):  # the first ones take long
            with torch.profiler.record_function(_ANCHOR):
                self._anchor = time.perf_counter()

    def next_batch(self) -> None:
        """Count one; after the last of them the file is written."""
        self._left -= 1
        if self._left == 0:
            self.end()

    def end(self) -> None:
        """Write what there is; once."""
        if self._left < -1:
            return
        self._left = -2
        self._stages.stop_recording()
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="embedcache-") as folder:
            whole = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(whole))
            trace = json.loads(whole.read_text())
        trace["traceEvents"] += _events(self._spans, self._offset(trace))
        write_file(self._path, json.dumps(trace).encode())
        self._say(
            f"A trace of the run's first batches is in {self._path}; it opens in https://ui.perfetto.dev."
        )

    def _offset(self, trace: dict[str, Any]) -> float:
        """What is added to our clock's microseconds to get those of torch's trace."""
        found = [event for event in trace["traceEvents"] if event.get("name") == _ANCHOR and "dur" in event]
        there = max((float(event["ts"]) + float(event["dur"]) / 2 for event in found), default=0.0)
        return there - self._anchor * 1e6


def _events(spans: list[Span], offset: float) -> Iterator[dict[str, Any]]:
    """The stages of each thread as a process of their own."""
    threads = {name: number for number, name in enumerate(sorted({span.thread for span in spans}), 1)}
    common = {"pid": "embedcache", "cat": "stage"}
    for name, number in threads.items():
        yield {"ph": "M", "name": "thread_name", "tid": number, "args": {"name": name}, **common}
    for span in spans:
        times = {"ts": span.begin * 1e6 + offset, "dur": span.seconds * 1e6}
        yield {"ph": "X", "name": span.stage, "tid": threads[span.thread], **times, **common}
