"""Turns a prepared training into a run folder: steps, validations, checkpoints, and the decision to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from embedcache.progress import Progress
from embedcache.sam.decoder import Decoder
from embedcache.train.feed import Feed
from embedcache.train.metrics import Figures
from embedcache.train.run import append_row
from embedcache.train.state import Standing, save_state
from embedcache.train.steps import Stepper
from embedcache.train.validation import Held, measure

METRIC = "dice"
ROWS_BETWEEN = 10
"""Training rows are means over this many steps."""


class Curves(Protocol):
    """Where curves go besides ``metrics.jsonl``."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a curve."""


@dataclass(frozen=True)
class Course:
    """The plan of a loop.

    Parameters
    ----------
    folder : Path
        Of the run.
    steps : int
        Where it ends at the latest.
    validate_every : int
    patience : int
        Validations without gain after which it ends; 0: never.
    val, interactive : tuple of Held
        See :class:`embedcache.train.setup.Setup`.
    val_source : str
    """

    folder: Path
    steps: int
    validate_every: int
    patience: int
    val: tuple[Held, ...]
    interactive: tuple[Held, ...]
    val_source: str


SaveCheckpoint = Callable[[str, dict[str, Tensor], Figures, int], None]


def run_loop(
    course: Course,
    stepper: Stepper,
    feed: Feed,
    standing: Standing,
    *,
    save: SaveCheckpoint,
    curves: Curves | None,
    progress: Progress,
) -> Standing:
    """Train from ``standing`` to the end of the course.

    Parameters
    ----------
    save : callable
        Writes a checkpoint of the given file name.

    Returns
    -------
    Standing
        At the end.
    """
    device = next(stepper.decoder.parameters()).device
    progress.start("train", course.steps - standing.step)
    window = _Window()
    started, before = time.perf_counter(), standing.seconds
    for step, items in enumerate(feed.batches(standing.step, course.steps), start=standing.step):
        result = stepper.step(step, items)
        window.add(result.loss, result.parts)
        done = step + 1
        progress.advance(1, f"loss {result.loss:.4f}")
        last = done == course.steps
        if done % ROWS_BETWEEN == 0 or last:
            row = {
                "step": done,
                "split": "train",
                "epoch": feed.epoch_of(step),
                "lr": result.lr,
                **window.take(),
            }
            _record(course.folder, row, curves)
        if done % course.validate_every == 0 or last:
            figures = validate(course, stepper.decoder, device, done, curves)
            standing = _judge(standing, figures, done, before + time.perf_counter() - started)
            state = stepper.decoder.state_dict()
            if standing.best_step == done:
                save("best.safetensors", state, figures, done)
            save("last.safetensors", state, figures, done)
            save_state(course.folder / "resume.safetensors", stepper.decoder, stepper.optimizer, standing)
            progress.say(f"step {done}: {METRIC} {figures.dice:.3f} on validation (best {standing.best:.3f})")
            if enough(course, standing):
                progress.say(f"stopped early: no better for {standing.without_gain} validations.")
                break
    progress.finish()
    return standing


def validate(
    course: Course, decoder: Decoder, device: torch.device, step: int, curves: Curves | None
) -> Figures:
    """Measure the held-out tiles, write the rows, and return the figures that choose the model."""
    figures = measure(decoder, course.val, device).best(METRIC)
    row = {"step": step, "split": "val", "prompt_source": course.val_source, **figures.to_dict()}
    _record(course.folder, row, curves)
    if course.interactive:
        apart = measure(decoder, course.interactive, device).best(METRIC)
        _record(
            course.folder,
            {"step": step, "split": "val", "prompt_source": "oracle", **apart.to_dict()},
            curves,
        )
    return figures


def _judge(standing: Standing, figures: Figures, step: int, seconds: float) -> Standing:
    if figures.dice > standing.best:
        return Standing(step, figures.dice, step, 0, seconds)
    return replace(standing, step=step, without_gain=standing.without_gain + 1, seconds=seconds)


def enough(course: Course, standing: Standing) -> bool:
    """Whether patience is used up; it counts from a third of the course on, as untrained decoders start slowly."""
    return 0 < course.patience <= standing.without_gain and standing.step * 3 >= course.steps


def _record(folder: Path, row: dict[str, Any], curves: Curves | None) -> None:
    append_row(folder / "metrics.jsonl", row)
    if curves is None:
        return
    place = f"{row['split']}/{row['prompt_source']}" if "prompt_source" in row else row["split"]
    for name, value in row.items():
        if isinstance(value, float):
            curves.add_scalar(f"{place}/{name}", value, row["step"])


class _Window:
    """Means of the losses since the last row."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, loss: float, parts: dict[str, float]) -> None:
        for name, value in {"loss": loss, **parts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class TensorBoardCurves(AbstractContextManager["TensorBoardCurves"]):
    """Curves for TensorBoard, in ``tensorboard/`` of a run (its own files, written by its own library)."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and wanted in training only

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a curve."""
        self._writer.add_scalar(tag, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
