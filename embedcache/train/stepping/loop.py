"""Turns a prepared training into a run folder: steps, validations, checkpoints, and the decision to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from embedcache.errors import ConfigError, Interrupted, counted
from embedcache.progress import Progress
from embedcache.train.asking.drawn import draw_validation
from embedcache.train.asking.metrics import Figures
from embedcache.train.feed.feeding import Feed
from embedcache.train.questions.batch import StepData, TileKey
from embedcache.train.stepping.course import METRIC, Course, enough, judge, validate
from embedcache.train.stepping.guard import Guard, diverged
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.rows import Rows, Window
from embedcache.train.stepping.state import Standing, save_state
from embedcache.train.stepping.steps import Stepper, StepResult

ROWS_BETWEEN = 10
"""Training rows are means over this many steps; a GPU is waited for no more often."""

Stop = Callable[[], int | None]
"""The number of the signal that wants the training to end after its step, or None."""

SaveCheckpoint = Callable[[str, dict[str, Tensor], Figures, int], None]
"""Writes a checkpoint under a file name."""


class Loop:
    """A training from where it stands to its end; ``step_seconds`` and ``step_waited`` are of its steps alone.

    Parameters
    ----------
    course : Course
    stepper : Stepper
    feed : Feed
    standing : Standing
        Where it stands.
    rows : Rows
    save : callable
        Writes a checkpoint; called in the first process only.
    ranks : Ranks
    progress : Progress
    stop : callable
    """

    def __init__(
        self,
        course: Course,
        stepper: Stepper,
        feed: Feed,
        standing: Standing,
        rows: Rows,
        *,
        save: SaveCheckpoint,
        ranks: Ranks,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self.course, self.stepper, self.feed, self.standing = course, stepper, feed, standing
        self.step_seconds = self.step_waited = 0.0
        self._note = ""
        self._rows, self._save_checkpoint = rows, save
        self._ranks, self._progress, self._stop = ranks, progress, stop
        self._window, self._guard = Window(standing.window), Guard.from_list(standing.guard)
        self._pending: list[StepResult] = []
        self._before = standing.seconds
        self._started = self._mark = time.perf_counter()
        self._waited = feed.waited

    def run(self) -> Standing:
        """Train to the end of the course.

        Raises
        ------
        ConfigError
            When it diverges; the checkpoints before stay.
        Interrupted
            When ``stop`` wants it; the state after the last step is saved.
        """
        course = self.course
        if self.standing.step % course.validate_every == 0 and enough(course, self.standing):
            return self.standing  # it stopped early, and was killed before it could say so
        self._progress.start("train", course.steps, self.standing.step)
        for result in self._results():
            self._pending.append(result)
            done = result.step + 1
            signal_number = 0 if done == course.steps else self._ranks.most(self._stop() or 0)
            if self._step_ends(result, saves=signal_number > 0):
                self._say(
                    f"stopped early: no better for {counted(self.standing.without_gain, 'validation')}."
                )
                break
            if signal_number:
                raise Interrupted(f"stopped after step {done}", signal_number=signal_number)
        self._progress.finish()
        return self.standing

    def _step_ends(self, result: StepResult, *, saves: bool) -> bool:
        """Read, write, measure and save what is due after a step; whether patience is used up then."""
        course, done = self.course, result.step + 1
        row_is_due = done % ROWS_BETWEEN == 0 or done == course.steps
        validates = done % course.validate_every == 0 or done == course.steps
        saves = saves or validates or done % course.save_every == 0
        if saves or row_is_due or self._ranks.device.type == "cpu":
            self._settle()
        self._progress.advance(1, self._note)
        if row_is_due:
            self._rows.add(self._row(result))
        if validates:
            self._validate(done)
        if saves:
            self._save(done)
            self._mark, self._waited = time.perf_counter(), self.feed.waited
        return validates and enough(course, self.standing)

    def _results(self) -> Iterator[StepResult]:
        """One step after the other; in smaller calls when a GPU's memory does not hold one."""
        step = self.standing.step
        while step < self.course.steps:
            data = cast(
                "Generator[StepData, None, None]",
                self.feed.steps(step * self.course.images, self.course.steps, first_step=step),
            )
            try:
                for one in data:
                    result = self.stepper.step(one)
                    step += 1
                    yield result
                continue
            except torch.OutOfMemoryError as error:
                if self.feed.images_per_call == 1:
                    raise _too_large(self.stepper.options.max_objects) from error
            finally:
                data.close()
            self.stepper.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.feed.images_per_call = -(-self.feed.images_per_call // 2)
            self._say(f"memory does not hold a call; images a call from here: {self.feed.images_per_call}.")

    def _settle(self) -> None:
        """Read what the steps since the last time gave; the first that is bad ends the training."""
        if not self._pending:
            return
        numbers = torch.stack([result.values for result in self._pending]).tolist()
        now = time.perf_counter()
        spent, waited = now - self._mark, self.feed.waited - self._waited
        self._mark, self._waited = now, self.feed.waited
        self.step_seconds += spent
        self.step_waited += waited
        times = {"seconds": spent / len(numbers), "data_wait": waited / len(numbers)}
        for result, values in zip(self._pending, numbers, strict=True):
            named = dict(zip(result.names, values, strict=True))
            fault = self._guard.fault(named["loss"], named["grad_norm"])
            if fault is not None:
                raise self._diverged(fault, result)
            self._window.add({**named, **times})
        self._note = f"loss {numbers[-1][0]:.4f}"
        self._pending = []

    def _diverged(self, fault: str, result: StepResult) -> ConfigError:
        self._rows.flush()
        best = self.course.folder / "best.safetensors"
        keys = self._ranks.gather([(key.store, key.number) for key in result.keys], 2)
        return diverged(
            fault,
            step=result.step,
            lr=result.lr,
            peak=self.stepper.options.lr,
            tiles=[self.feed.name_of(TileKey(*key)) for key in keys],
            kept=best if best.exists() else None,
        )

    def _row(self, result: StepResult) -> dict[str, object]:
        done = result.step + 1
        place = {"step": done, "images": done * self.course.images, "split": "train", "epoch": result.epoch}
        return {**place, "lr": result.lr, **self._window.take()}

    def _validate(self, done: int) -> None:
        """Measure, and keep the checkpoints: the best before the newest, which only says where it stands."""
        with self._averaged():
            weights = "raw" if self.stepper.average is None else "ema"
            figures = validate(self.course, self.stepper.model, self._ranks, done, self._rows, weights)
            self.standing = judge(self.standing, figures, done)
            if self._ranks.main:
                self._rows.flush()
                state = self.stepper.model.state_dict()
                if self.standing.best_step == done:
                    self._save_checkpoint("best.safetensors", state, figures, done)
                self._save_checkpoint("last.safetensors", state, figures, done)
            if self._ranks.main:
                self._draw(done, figures.threshold)
        best = self.standing.best
        self._say(f"step {done}: {METRIC} {figures.dice:.3f} on validation (best {best:.3f})")

    def _draw(self, done: int, threshold: float) -> None:
        """Pictures of a few held-out tiles, those with prompts to be seen first."""
        held = (*self.course.interactive, *self.course.val)
        draw_validation(
            self.stepper.model,
            held,
            self._ranks.device,
            folder=self.course.folder,
            step=done,
            logger=self._rows.logger,
            threshold=threshold,
        )

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.stepper.average is None else self.stepper.average.swapped()

    def _save(self, done: int) -> None:
        """Make it possible to go on from here, after everything that is of steps before is on the disk."""
        self.standing = replace(
            self.standing,
            step=done,
            images=done * self.course.images,
            seconds=self._before + time.perf_counter() - self._started,
            window=self._window.to_dict(),
            guard=self._guard.to_list(),
        )
        if not self._ranks.main:
            return
        self._rows.flush()
        save_state(
            self.course.folder / "resume.safetensors",
            self.stepper.model,
            self.stepper.optimizer,
            self.standing,
            average=self.stepper.average,
        )

    def _say(self, line: str) -> None:
        self._progress.say(line)


def _too_large(max_objects: int) -> ConfigError:
    return ConfigError(
        f"The GPU's memory does not hold a step of one image at a time with up to {max_objects} objects.",
        hint="Ask for fewer objects at once with --max-objects, or train on another --device.",
    )
