"""Turns a model into a ``TrainBench``: seconds, memory and loss of a step, cached and not, ours and stock.

Each way has a process of its own, and they take turns, step by step. Encoders stand in the loop of the first case
only: what they cost is the same for every prompt and grows with the images.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from embedcache.bench.child import Child
from embedcache.bench.machine import machine
from embedcache.bench.step_figures import StepFigures, TrainBench
from embedcache.bench.step_process import ENCODERS, StepSettings
from embedcache.bench.turns import check_wishes, take_turns
from embedcache.bench.waiting import shares_of_waiting
from embedcache.errors import ConfigError, InputError
from embedcache.progress import Progress
from embedcache.sam.encoder import resolve_device

CASES = ("1x1", "1x16", "8x1")
"""Images of a step × boxes on each."""

LABELS = {
    "cached": "embedcache, cached",
    "stock_cached": "stock decoder image by image, cached",
    "stock": "stock, its encoder in the loop",
    "ours": "embedcache, its encoder in the loop",
}


def bench_training(
    progress: Progress,
    *,
    model: str = "vit_b",
    checkpoint: str = "random:0",
    rounds: int = 3,
    threads: int | None = None,
    device: str = "auto",
    cases: Sequence[str] = (),
    only: Sequence[str] = (),
    wait: bool = True,
) -> TrainBench:
    """Let all ways take the same training steps in turns.

    Parameters
    ----------
    progress : Progress
        Where to report to.
    model, checkpoint : str
        One of SAM's encoders and its weights.
    rounds : int
        Steps of each way, beside its first.
    threads : int, optional
        CPU threads of each.
    device : str
        ``auto`` or a torch device.
    cases : sequence of str
        Images × boxes, as ``8x1``; by default :data:`CASES`. In the first the encoders take part.
    only : sequence of str
        Names of ways; all without.
    wait : bool
        Whether a real training shows how long it waits for its data.

    Raises
    ------
    ConfigError
        For a number, a case or a way that is none.
    InputError
        When no way runs, or there is no such model or device.
    """
    check_wishes("bench train", model, rounds=rounds, threads=threads)
    unknown = [way for way in only if way not in ENCODERS]
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: expected one of {', '.join(ENCODERS)}.")
    sizes = {case: _size(case) for case in (cases or CASES)}
    place = resolve_device(device)
    figures: list[StepFigures] = []
    not_run: dict[str, str] = {}
    for case, (images, boxes) in sizes.items():
        # The one that leaves its embeddings for the others comes first
        ways = ("stock", "cached", "stock_cached", "ours") if not figures else ("cached", "stock_cached")
        with tempfile.TemporaryDirectory(prefix="embedcache-bench-") as folder:
            file = str(Path(folder) / "embeddings.npy")
            settings = {
                way: StepSettings(way, model, checkpoint, str(place), images, boxes, threads, file)
                for way in ways
                if not only or way in only
            }
            found, failed = _take_turns(case, settings, rounds, progress)
        figures += found
        not_run |= failed
    if not figures:
        raise InputError("Not one way could run.", hint="\n".join(f"  {k}: {v}" for k, v in not_run.items()))
    waits = shares_of_waiting(place, progress) if wait else {}
    return TrainBench(model, checkpoint, str(place), rounds, tuple(figures), not_run, waits, machine(place))


def _size(case: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", case)
    if match is None:
        raise ConfigError(f"--case {case}: expected images x boxes, as 8x1.")
    return int(match[1]), int(match[2])


def _take_turns(
    case: str, settings: dict[str, StepSettings], rounds: int, progress: Progress
) -> tuple[list[StepFigures], dict[str, str]]:
    """Let the ways step in turns; the figures of those that stayed to the end, and why the others did not."""
    with ExitStack() as stack:
        progress.start(f"{case}: starting", len(settings))
        children: dict[str, Child] = {}
        for way, one in settings.items():
            children[way] = stack.enter_context(Child(one, module="embedcache.bench.step_process"))
            progress.advance(note=LABELS[way])
        progress.start(f"{case}: taking turns", rounds * len(settings))
        turns = take_turns(children, rounds, progress, lambda way, seconds: f"{LABELS[way]}: {seconds:.3g} s")
        for child in children.values():
            if child.not_run is None:
                child.end()
    figures = [
        StepFigures(
            case,
            way,
            LABELS[way],
            seconds=tuple(wall for wall, _ in turns[way]),
            cpu_seconds=tuple(worked for _, worked in turns[way]),
            **child.ready,
            **{**child.ended, "losses": tuple(child.ended["losses"])},
        )
        for way, child in children.items()
        if child.not_run is None
    ]
    return figures, {f"{case} {way}": child.not_run for way, child in children.items() if child.not_run}
