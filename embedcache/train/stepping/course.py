"""Turns the plan of a training into what it measures on the way, and into the decision to stop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from embedcache.sam.decoder import Decoder
from embedcache.train.asking.metrics import Figures
from embedcache.train.asking.validation import Held, measure
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.rows import Rows
from embedcache.train.stepping.state import Standing

METRIC = "dice"

VALIDATION_BATCH = 4
"""Tiles of one call in a validation."""


@dataclass(frozen=True)
class Course:
    """The plan of a loop.

    Parameters
    ----------
    folder : Path
        Of the run.
    steps : int
        Where it ends at the latest.
    images : int
        Of one step, over all processes.
    validate_every, save_every : int
        Steps between validations, and between states to go on from.
    patience : int
        Validations without gain after which it ends; 0: never.
    val, interactive : tuple of Held
        See :class:`embedcache.train.setup.Setup`.
    val_source : str
    threads : int
        That read in a validation.
    """

    folder: Path
    steps: int
    images: int
    validate_every: int
    save_every: int
    patience: int
    val: tuple[Held, ...]
    interactive: tuple[Held, ...]
    val_source: str
    threads: int = 2


def validate(course: Course, model: Decoder, ranks: Ranks, step: int, rows: Rows, weights: str) -> Figures:
    """Measure the held-out tiles, write the rows, and return the figures that choose the model."""

    def figures(held: tuple[Held, ...], source: str) -> Figures:
        found = measure(
            model, held, ranks.device, batch=VALIDATION_BATCH, ranks=ranks, threads=course.threads
        )
        best = found.best(METRIC)
        asked = {"prompt_source": source, "prompts": held[0].dataset.prompts, "weights": weights}
        rows.add({"step": step, "split": "val", **asked, **best.to_dict()})
        return best

    chosen = figures(course.val, course.val_source)
    if course.interactive:
        figures(course.interactive, "oracle")
    return chosen


def judge(standing: Standing, figures: Figures, step: int) -> Standing:
    """Where a training stands after a validation."""
    if figures.dice > standing.best:
        return replace(standing, step=step, best=figures.dice, best_step=step, without_gain=0)
    return replace(standing, step=step, without_gain=standing.without_gain + 1)


def enough(course: Course, standing: Standing) -> bool:
    """Whether patience is used up; it counts from a third of the course on, as untrained decoders start slowly."""
    return 0 < course.patience <= standing.without_gain and standing.step * 3 >= course.steps
