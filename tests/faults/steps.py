"""A fault at each step that changes the disk: a process that ends there, a disk that refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from embedcache.files import disk as disk_module

from .outcome import Outcome, Row, detected, survived
from .scenarios import (
    COMPACT,
    CREATE,
    IMAGES,
    INT8,
    REENCODE,
    REPAIR,
    VIEWS,
    VIEWS_OF_IMAGES,
    WIDEN,
    Scenario,
    check_afterwards,
    prepare,
)
from .stage import CountingDisk, Stage, Watch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)

_FREEING = {"unlink", "rmdir", "truncate", "fsync", "fsync_folder"}
"""What a full disk still does."""


def exit_row(scenario: Scenario, name: str, weight: float) -> Row:
    """The process ends, as by SIGKILL, right before step N: for every N."""

    def cases(stage: Stage) -> Sequence[int]:
        return range(1, len(prepare(stage, scenario)) + 1)

    def trial(stage: Stage, step: int, _: Random) -> Outcome:
        watch = Watch()

        def before() -> None:
            def on_step(_: str) -> None:
                if watch.step() == step:
                    os._exit(137)

            watch.install()
            disk_module.set_disk(CountingDisk(on_step))

        store = scenario.begin(stage)
        child = scenario.run(stage, store, before)
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


def error_row(scenario: Scenario, name: str, weight: float, *, every: int = 1) -> Row:
    """Step N is refused, once or from there on: for every N and three kinds of refusal.

    ``every`` 3: the kinds take turns, so that every step is refused twice and not six times.
    """

    def cases(stage: Stage) -> Sequence[tuple[int, int, str]]:
        steps = len(prepare(stage, scenario))
        modes = ("once", "from then on")
        return [
            (n, code, mode)
            for n in range(1, steps + 1)
            for at, mode in enumerate(modes)
            for code in (ERRORS if every == 1 else (ERRORS[(n + at) % len(ERRORS)],))
        ]

    def trial(stage: Stage, case: tuple[int, int, str], _: Random) -> Outcome:
        step, code, mode = case
        watch = Watch()

        def before() -> None:
            watch.install()
            disk_module.set_disk(CountingDisk(refusal(watch, step, code, always=mode == "from then on")))

        store = scenario.begin(stage)
        child = scenario.run(stage, store, before)
        words = f"{errno.errorcode[code]} {mode} at step {step}"
        refused = {6, 4} if scenario is REPAIR else {6}  # 4: not all could be mended, with the reason
        assert child.code in {0, *refused}, f"{words}: exit code {child.code}: {child.said[-1200:]}"
        if child.code:
            assert str(stage.here) in child.said, f"{words}: no path is named: {child.said[-500:]}"
        check_afterwards(stage, scenario, store, watch, words)
        return detected(steps=step) if child.code else survived(steps=step)

    return Row(
        name,
        f"ENOSPC, EIO {'and EACCES' if every == 1 else 'or EACCES in turn'} at every step that changes the disk, "
        f"once and from then on: {scenario.name}",
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
    error_row(CREATE, "error-encode", 100, every=3),
    error_row(WIDEN, "error-widen", 80),
    exit_row(COMPACT, "exit-compact", 30),
    error_row(COMPACT, "error-compact", 60, every=3),
    exit_row(REENCODE, "exit-reencode", 30),
    exit_row(REPAIR, "exit-repair", 30),
    error_row(REPAIR, "error-repair", 60, every=3),
    exit_row(INT8, "exit-int8", 20),
    exit_row(IMAGES, "exit-images", 25),
    exit_row(VIEWS, "exit-views", 30),
    error_row(VIEWS, "error-views", 60, every=3),
    exit_row(VIEWS_OF_IMAGES, "exit-views-of-images", 30),
)
