"""Turns a command line into a process that runs the real command, in milliseconds: a fork that has all imports.

The parent must not have started threads: a fork takes only one along.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PATIENCE = 120.0
"""Seconds after which a command counts as hanging."""

Before = Callable[[], None]


class HangingError(AssertionError):
    """A command did not end."""


@dataclass
class Child:
    """A running command; ``most_memory`` is known when it has ended, in bytes."""

    pid: int
    log: Path
    code: int | None = None
    most_memory: int = 0

    def wait(self, timeout: float = PATIENCE) -> int:
        """Exit code; minus the signal's number when one killed it."""
        if self.code is not None:
            return self.code
        descriptor = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([descriptor], [], [], timeout)
        finally:
            os.close(descriptor)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        self.most_memory = usage.ru_maxrss * 1024
        self.code = os.waitstatus_to_exitcode(status)
        if not ready:
            raise HangingError(f"no end after {timeout} s: {self.said[-500:]}")
        return self.code

    def send(self, number: int) -> None:
        """Send a signal; a command that has ended already does not mind."""
        if self.code is None:
            os.kill(self.pid, number)

    @property
    def running(self) -> bool:
        """Whether it has not ended; does not take its exit code away from :meth:`wait`."""
        return (
            self.code is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        )

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self.log.with_suffix(".err").read_text(errors="replace")

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object that it wrote to stdout."""
        text = self.log.with_suffix(".out").read_text()
        try:
            return dict(json.loads(text))
        except ValueError:
            raise AssertionError(f"no JSON on stdout: {text[-300:]!r}; stderr: {self.said[-600:]}") from None


def start(arguments: Sequence[str | Path], log: Path, before: Before = lambda: None) -> Child:
    """Start a command; ``before`` runs in the new process first."""
    from embedcache.cli.app import run

    words = [str(word) for word in arguments]
    return Child(_fork(lambda: run(words), log, before), log)


def command(arguments: Sequence[str | Path], log: Path, before: Before = lambda: None) -> Child:
    """Run a command to its end."""
    child = start(arguments, log, before)
    child.wait()
    return child


def call(function: Callable[[], Any], log: Path) -> Any:
    """Run a Python function in a process of its own and give back its JSON value."""

    def work() -> int:
        sys.stdout.write(json.dumps({"value": function()}))
        return 0

    child = Child(_fork(work, log, lambda: None), log)
    if child.wait() != 0:
        raise AssertionError(f"exit code {child.code}: {child.said[-2000:]}")
    return child.result["value"]


def _fork(work: Callable[[], int], log: Path, before: Before) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".out", ".err"):
        log.with_suffix(suffix).write_bytes(b"")
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _redirect(log)
        torch.set_num_threads(1)
        before()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 74
        os._exit(code)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def pause(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)
