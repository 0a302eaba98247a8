"""A fault at each step that changes the disk, from the first to the last: a process that ends there, a disk that refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from embedcache.files import disk as disk_module

from .outcome import Outcome, Row, detected, survived
from .scenarios import CREATE, WIDEN, Scenario, check_afterwards, count_steps
from .stage import CountingDisk, Stage, Watch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)

_FREEING = {"unlink", "rmdir", "truncate", "fsync", "fsync_folder"}
"""What a full disk still does."""


def exit_row(scenario: Scenario, name: str, weight: float) -> Row:
    """The process ends, as by SIGKILL, right before step N: for every N."""

    def cases(stage: Stage) -> Sequence[int]:
        return range(1, len(count_steps(stage, scenario)) + 1)

    def trial(stage: Stage, step: int, _: Random) -> Outcome:
        watch = Watch()

        def before() -> None:
            def on_step(_: str) -> None:
                if watch.step() == step:
                    os._exit(137)

            watch.install()
            disk_module.set_disk(CountingDisk(on_step))

        store = scenario.begin(stage)
        child = stage.run(*scenario.words(stage, store), before=before)
        assert child.code == 137, f"ended with {child.code} before step {step}: {child.said[-500:]}"
        check_afterwards(stage, scenario, store, watch, f"exit at step {step}")
        return survived(steps=step)

    return Row(
        name,
        f"exit right before every step that changes the disk: {scenario.name}",
        "old state or new state; the same command ends with the bytes of an undisturbed run",
        trial,
        cases=cases,
        weight=weight,
    )


def error_row(scenario: Scenario, name: str, weight: float) -> Row:
    """Step N is refused, once or from there on: for every N and three kinds of refusal."""

    def cases(stage: Stage) -> Sequence[tuple[int, int, str]]:
        steps = len(count_steps(stage, scenario))
        return [(n, code, mode) for n in range(1, steps + 1) for code in ERRORS for mode in ("once", "from then on")]

    def trial(stage: Stage, case: tuple[int, int, str], _: Random) -> Outcome:
        step, code, mode = case
        watch = Watch()

        def before() -> None:
            watch.install()
            disk_module.set_disk(CountingDisk(refusal(watch, step, code, always=mode == "from then on")))

        store = scenario.begin(stage)
        child = stage.run(*scenario.words(stage, store), before=before)
        words = f"{errno.errorcode[code]} {mode} at step {step}"
        assert child.code in (0, 6), f"{words}: exit code {child.code}: {child.said[-1200:]}"
        if child.code == 6:
            assert str(stage.here) in child.said, f"{words}: no path is named: {child.said[-500:]}"
        check_afterwards(stage, scenario, store, watch, words)
        return detected(steps=step) if child.code == 6 else survived(steps=step)

    return Row(
        name,
        f"ENOSPC, EIO and EACCES at every step that changes the disk, once and from then on: {scenario.name}",
        "exit 6 naming the path (or no harm); then the same command ends with the bytes of an undisturbed run",
        trial,
        cases=cases,
        weight=weight,
    )


def refusal(watch: Watch, step: int, code: int, *, always: bool) -> Callable[[str], None]:
    """What a counting disk calls so that a step, or all from there on, are refused."""

    def on_step(name: str) -> None:
        number = watch.step()
        hit = number == step or (always and number > step and not (code == errno.ENOSPC and name in _FREEING))
        if hit:
            raise OSError(code, os.strerror(code))

    return on_step


ROWS: tuple[Any, ...] = (
    exit_row(CREATE, "exit-encode", 30),
    exit_row(WIDEN, "exit-widen", 20),
    error_row(CREATE, "error-encode", 150),
    error_row(WIDEN, "error-widen", 80),
)
