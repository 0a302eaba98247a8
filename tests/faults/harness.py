"""Runs the rows of the table: a clean process that has all imports, and two workers that fork the commands."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch

from embedcache.cli.app import register

from . import encoder
from .outcome import LostError, Outcome, Row, SilentError
from .stage import Stage, make_base

DEFAULT_ROUNDS = 100
WORKERS = 2
PART_SECONDS = 15.0
"""A row is cut into parts of about so many seconds, which the workers take one after the other."""


def run_rows(
    rows: Sequence[Row],
    *,
    rounds: int,
    seed: int,
    folder: Path,
    workers: int = WORKERS,
    damage: Callable[[], None] = lambda: None,
) -> dict[str, Outcome]:
    """Run rows; returns what became of each.

    Parameters
    ----------
    rows : sequence of Row
        What to run.
    rounds : int
        100 is the default size; random rows grow and shrink with it, others only shrink.
    seed : int
        Each trial's random numbers follow from it, the row's name and the trial's number.
    folder : Path
        An empty folder to work in.
    workers : int
        Trials at a time.
    damage : callable
        Called when the undisturbed stores are there: breaks embedcache, for the harness's own test.
    """
    start(folder)
    damage()
    jobs = _jobs(rows, rounds)
    results = folder / "results"
    results.mkdir()
    queue, feed = os.pipe()
    os.write(feed, b"".join(number.to_bytes(4, "little") for number in range(len(jobs))))
    os.close(feed)
    children = []
    for worker in range(workers):
        pid = os.fork()
        if pid == 0:
            _work(worker, jobs, queue, rounds, seed, folder)
        children.append(pid)
    os.close(queue)
    for pid in children:
        os.waitpid(pid, 0)
    outcomes = {row.name: Outcome() for row in rows}
    for number, (row, _, _) in enumerate(jobs):
        file = results / f"{number}.json"
        if file.exists():
            outcomes[row.name].add(Outcome(**json.loads(file.read_text())))
        else:
            outcomes[row.name].problem("failed", "its worker died")
    return outcomes


def start(folder: Path) -> None:
    """Make this process one that can be forked for each trial: all imported, one thread, the base folder made."""
    torch.set_num_threads(1)
    register()
    encoder.register()
    make_base(folder / "base")  # here and not in a child: what it imports on the way is then there for all
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would take only one of them along"


Job = tuple[Row, int, int]
"""A row, which part of it, and how many parts it has."""


def _jobs(rows: Sequence[Row], rounds: int) -> list[Job]:
    jobs = []
    for row in sorted(rows, key=lambda row: -row.weight):
        parts = max(1, math.ceil(row.weight * rounds / DEFAULT_ROUNDS / PART_SECONDS))
        jobs += [(row, part, parts) for part in range(parts)]
    return jobs


def _work(worker: int, jobs: list[Job], queue: int, rounds: int, seed: int, folder: Path) -> None:
    """A worker's life: take a job, run it, write down what became of it."""
    code = 1
    try:
        while taken := os.read(queue, 4):
            number = int.from_bytes(taken, "little")
            row, part, parts = jobs[number]
            stage = Stage(folder / "base", folder / f"worker-{worker}" / row.name)
            stage.fresh()
            outcome = run_part(row, stage, part, parts, rounds, seed)
            (folder / "results" / f"{number}.json").write_text(json.dumps(asdict(outcome)))
            shutil.rmtree(stage.folder, ignore_errors=True)
            words = f"{row.name} {part + 1}/{parts}: {outcome.trials} trials in {outcome.seconds:.1f} s"
            sys.stderr.write(words + ("\n" if outcome.good else f"  {outcome.problems[:3]}\n"))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_part(row: Row, stage: Stage, part: int, parts: int, rounds: int, seed: int) -> Outcome:
    """Run one part of a row's trials."""
    total, begin = Outcome(), time.monotonic()
    try:
        if row.prepare is not None:
            row.prepare(stage)
        cases = _cases(row, stage, rounds)[part::parts]
    except BaseException:
        total.problem("failed", f"{row.name} could not be prepared: {traceback.format_exc()[-1500:]}")
        cases = []
    for index, case in cases:
        total.add(
            run_trial(row, stage, case, Random(f"{seed}/{row.name}/{index}"), f"seed {seed}, trial {index}")
        )
    total.seconds = time.monotonic() - begin
    return total


def run_trial(row: Row, stage: Stage, case: Any, rng: Random, name: str) -> Outcome:
    """Run one trial; what it raises becomes part of its outcome."""
    stage.fresh()
    words = f"{row.name}, {name}" + (f", {case}" if row.cases else "")
    outcome = Outcome()
    try:
        return row.trial(stage, case, rng)
    except SilentError as error:
        outcome.problem("silent", f"{words}: {error}")
    except LostError as error:
        outcome.problem("lost", f"{words}: {error}")
    except AssertionError as error:
        outcome.problem("failed", f"{words}: {error}")
    except Exception:
        outcome.problem("failed", f"{words}: {traceback.format_exc()[-1500:]}")
    return outcome


def _cases(row: Row, stage: Stage, rounds: int) -> list[tuple[int, Any]]:
    """The trials' numbers and cases: all of them at the default size, evenly picked ones below."""
    share = rounds / DEFAULT_ROUNDS
    if row.cases is None:
        return [(index, index) for index in range(max(1, round(row.trials * share)))]
    cases = list(row.cases(stage))
    wanted = min(len(cases), max(1, math.ceil(len(cases) * share)))
    picked = sorted({round(i * (len(cases) - 1) / max(wanted - 1, 1)) for i in range(wanted)})
    return [(index, cases[index]) for index in picked]
