"""Turns a run folder into what a training does first: begin in it, or go on with what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import ConfigError, MismatchError, counted
from embedcache.files import digest_json
from embedcache.progress import Progress
from embedcache.store.reading.order import Order
from embedcache.train.asking.metrics import Figures
from embedcache.train.options import TrainOptions
from embedcache.train.record import check_resumable, describe, drawn_views
from embedcache.train.run import Json, keep_rows_until, read_json, write_json
from embedcache.train.setup import Setup
from embedcache.train.stepping.batch_size import choose_batch_size
from embedcache.train.stepping.course import METRIC, Course, enough, validate
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.rows import Rows
from embedcache.train.stepping.state import Standing, load_state
from embedcache.train.stepping.steps import Stepper
from embedcache.train.truth.overlay import save_overlay


@dataclass(frozen=True)
class Beginning:
    """What the first process decides once, for all of them and for every time that the run goes on.

    Parameters
    ----------
    config : dict
        What ``config.json`` holds, but for the order of a run that begins.
    order : Order or None
        In which tiles come; None: to be chosen by the memory there is.
    goes_on : bool
        Whether there is a state to go on from.
    """

    config: Json
    order: Order | None
    goes_on: bool

    @property
    def batch_size(self) -> int:
        """Images of a batch; a step takes one, or as many as are accumulated."""
        return int(self.config["options"]["batch_size"])


def decide(setup: Setup, options: TrainOptions, folder: Path, ranks: Ranks, progress: Progress) -> Beginning:
    """Look what the folder holds; nothing is written.

    Raises
    ------
    MismatchError
        When a run there began otherwise, or the processes saw different tiles.
    ConfigError
        When a step has fewer images than there are processes.
    """
    _require_one_snapshot(setup, ranks)
    config: Json = {}
    if ranks.main:
        begun = (folder / "config.json").exists()
        size = options.batch_size or (
            1 if begun else choose_batch_size(setup, options, ranks.device, progress.say)
        )
        config = describe(setup, options, size)
        if begun:
            config = check_resumable(folder, config, setup.split.to_dict(), options.batch_size)
        elif options.resume:
            progress.say(f"{folder} holds no run to go on with: it begins.")
    states = (folder / name for name in ("resume.safetensors", "baseline.json"))
    config, goes_on = ranks.agree((config, ranks.main and all(state.is_file() for state in states)))
    order = config.get("order")
    beginning = Beginning(config, None if order is None else Order.from_dict(order), goes_on)
    images = beginning.batch_size * options.accumulate
    if images < ranks.world:
        raise ConfigError(
            f"A step has {counted(images, 'image')}, fewer than the {ranks.world} processes that share it.",
            hint=f"Give --batch-size {ranks.world} or more, or start fewer processes.",
        )
    return beginning


def _require_one_snapshot(setup: Setup, ranks: Ranks) -> None:
    """All processes opened the stores on their own; one of them may have grown in between."""
    mine = digest_json([setup.split.to_dict(), drawn_views(setup)])
    if ranks.most(int(ranks.agree(mine) != mine)):
        raise MismatchError(
            "The processes of this training opened a store that grew in between; they saw different tiles.",
            hint="Start again, when its encoding has finished or stands still.",
        )


def begin(
    beginning: Beginning, setup: Setup, course: Course, stepper: Stepper, ranks: Ranks, progress: Progress
) -> Standing:
    """Put back where the run stood, or write what a new one has before its first step."""
    folder = course.folder
    if beginning.goes_on:
        state = folder / "resume.safetensors"
        standing = load_state(state, stepper.model, stepper.optimizer, average=stepper.average)
        if ranks.main:
            keep_rows_until(folder / "metrics.jsonl", standing.step)
        progress.say(f"{folder}: going on from step {standing.step}.")
        return standing
    if ranks.main:
        keep_rows_until(folder / "metrics.jsonl", -1)
        write_json(folder / "config.json", beginning.config)
        write_json(folder / "split.json", setup.split.to_dict())
        _draw_alignment(setup, folder)
        progress.say(f"{folder / 'overlay.png'} shows the labels over an embedding.")
    return Standing()


def is_finished(course: Course, standing: Standing, ranks: Ranks) -> bool:
    """Whether nothing is left to do."""
    summed_up = ranks.agree((course.folder / "summary.json").is_file())
    return summed_up and (standing.step >= course.steps or enough(course, standing))


def baseline(
    beginning: Beginning, setup: Setup, course: Course, ranks: Ranks, rows: Rows, progress: Progress
) -> Figures:
    """The untrained decoder's figures on the same tiles, measured when the run begins."""
    path = course.folder / "baseline.json"
    if beginning.goes_on:
        return Figures(**read_json(path))
    untrained = setup.stores[0].decoder().to(ranks.device)
    figures = validate(course, untrained, ranks, 0, rows, "raw")
    if ranks.main:
        rows.flush()
        write_json(path, figures.to_dict())
    progress.say(f"untrained decoder: {METRIC} {figures.dice:.3f} ({course.val_source} prompts).")
    return figures


def _draw_alignment(setup: Setup, folder: Path) -> None:
    """The overlay of the training tile with the most positives."""
    dataset = setup.train[0].dataset
    counts = dataset.labels.positive(dataset.store, setup.train[0].numbers)
    number = setup.train[0].numbers[int(counts.argmax())]
    tile = dataset.store.tile(number)
    boxes = None if dataset.boxes is None else dataset.boxes.of_tile(tile)
    save_overlay(folder / "overlay.png", dataset.store[number], dataset.labels.crop(tile), tile, boxes=boxes)
