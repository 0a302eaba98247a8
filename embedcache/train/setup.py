"""Turns stores, label paths and options into all a training loop needs, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.errors import ConfigError, LabelError, counted
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.train.asking.validation import Held
from embedcache.train.options import TrainOptions
from embedcache.train.overfit import overfit_split
from embedcache.train.pairs import LabelsLike, StoreLike, one_task, open_pairs
from embedcache.train.questions.box_prompts import BoxPrompts, open_boxes, require_boxes
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.mask_prompts import MaskPrompts, open_mask_prompts
from embedcache.train.questions.objects import check_objects, default_objects
from embedcache.train.questions.prompts import FREE_SHARE, prompt_source
from embedcache.train.start import require_unseen
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.split import Part, Split, make_split
from embedcache.train.truth.task import Task


@dataclass(frozen=True)
class Setup:
    """What a training works on.

    Parameters
    ----------
    stores, labels : tuple
        Pairs.
    task, prompts, objects : str
        Resolved.
    split : Split
    train : tuple of Held
        Training tiles, asked with ``prompts``.
    val : tuple of Held
        Held-out tiles, asked as the figure that chooses the model is: without prompts for semantic labels
        (``free``), with the first prompt for instances (``oracle``).
    val_source : "free" or "oracle"
    interactive : tuple of Held
        For semantic labels with oracle prompts: the same tiles with these, reported apart; else empty.
    """

    stores: tuple[EmbeddingStore, ...]
    labels: tuple[Labels, ...]
    task: Task
    prompts: str
    objects: str
    split: Split
    train: tuple[Held, ...]
    val: tuple[Held, ...]
    val_source: str
    interactive: tuple[Held, ...]


def prepare(
    stores: StoreLike | Sequence[StoreLike],
    labels: LabelsLike | Sequence[LabelsLike],
    options: TrainOptions,
    progress: Progress,
) -> Setup:
    """Open and check everything; nothing is written.

    Raises
    ------
    LabelError, ConfigError, MismatchError, MissingTilesError
    """
    opened, found = open_pairs(stores, labels, options, progress)
    task = one_task(found)
    prompts = options.prompts or ("none" if task == "semantic" else "iterative")
    objects = check_objects(options.objects or default_objects(task, prompts), task, prompts)
    split = _split(opened, found, options, progress)
    starts = _starts(opened, prompts, options, progress)
    boxes = _boxes(opened, prompts, options, progress)
    if prompts != "iterative" and options.rounds != TrainOptions.rounds:
        progress.say(f"--rounds {options.rounds} has no effect: prompts {prompts} are asked once.")
    free = task == "semantic" and prompt_source(prompts) == "oracle"
    val_prompts = "none" if free else prompts
    drawn_anew: dict[str, Any] = {
        "rounds": options.rounds,
        "views": options.views == "auto",
        "jitter": options.jitter,
        "free_share": FREE_SHARE if free else 0.0,
    }

    def hold(
        part: Part, prompts: str, objects: str, within: Sequence[Labels] = found, **more: Any
    ) -> tuple[Held, ...]:
        held = (
            _hold(
                opened[i],
                within[i],
                numbers,
                prompts,
                objects,
                options,
                i,
                start=starts[i],
                boxes=boxes[i],
                **more,
            )
            for i, numbers in part
        )
        return tuple(item for item in held if item is not None)

    if prompts == "boxes":
        _require_boxed(split, opened, boxes, progress)
    inner = [label.validating() for label in found]
    return Setup(
        stores=opened,
        labels=found,
        task=task,
        prompts=prompts,
        objects=objects,
        split=split,
        train=hold(split.train, prompts, objects, **drawn_anew),
        val=hold(split.val, val_prompts, "whole" if free else objects, inner),
        val_source=prompt_source(val_prompts),
        interactive=hold(split.val, prompts, objects, inner) if free else (),
    )


def _split(
    stores: Sequence[EmbeddingStore], labels: Sequence[Labels], options: TrainOptions, progress: Progress
) -> Split:
    if options.overfit:
        split = overfit_split(stores, labels, options.overfit)
    else:
        split = make_split(stores, labels, options.val)
        require_unseen(split, stores, options)
    train, val = _count(split.train), _count(split.val)
    progress.say(f"split: {split.rule}; {counted(train, 'tile')} to train on, {val} to validate.")
    return split


def _starts(
    stores: Sequence[EmbeddingStore], prompts: str, options: TrainOptions, progress: Progress
) -> list[MaskPrompts | None]:
    """What each store's mask prompts start from."""
    if options.start is not None and prompts != "mask":
        raise ConfigError(f"--start is what --prompts mask starts from; the prompts are {prompts}.")
    found: list[MaskPrompts | None] = []
    for index, store in enumerate(stores):
        path = options.start_of(index, len(stores))
        start = None if path is None else open_mask_prompts(path, store)
        if start is not None:
            progress.say(f"{start.source}: {start.alignment}")
        found.append(start)
    return found


def _boxes(
    stores: Sequence[EmbeddingStore], prompts: str, options: TrainOptions, progress: Progress
) -> list[BoxPrompts | None]:
    """What each store's box prompts are."""
    if options.boxes is not None and prompts != "boxes":
        raise ConfigError(f"--boxes is what --prompts boxes asks with; the prompts are {prompts}.")
    found: list[BoxPrompts | None] = []
    for index, store in enumerate(stores):
        path = options.boxes_of(index, len(stores))
        boxes = None if path is None else open_boxes(path, store)
        if prompts == "boxes":
            progress.say(f"{require_boxes(boxes).source}: {require_boxes(boxes).alignment}")
        found.append(boxes)
    return found


def _require_boxed(
    split: Split,
    stores: Sequence[EmbeddingStore],
    boxes: Sequence[BoxPrompts | None],
    progress: Progress,
) -> None:
    """Say how many tiles have no box, and refuse where none of a part has one."""
    for name, part in (("training", split.train), ("validation", split.val)):
        left = 0
        for index, numbers in part:
            own = require_boxes(boxes[index])
            boxed = len(own.tiles(stores[index], numbers))
            left += boxed
            if boxed < len(numbers):
                without = f"{len(numbers) - boxed} of {counted(len(numbers), 'tile')}"
                progress.say(f"{own.source}: {without} of {name} have no box and take no part.")
        if not left:
            files = ", ".join(own.source for own in boxes if own is not None)
            raise LabelError(
                f"No box of {files} lies on a tile of {name} ({split.rule}).",
                hint="Draw some there, or hold something else out with --val.",
            )


def _hold(
    store: EmbeddingStore,
    labels: Labels,
    numbers: Sequence[int],
    prompts: str,
    objects: str,
    options: TrainOptions,
    index: int,
    **more: Any,
) -> Held | None:
    if prompts == "boxes":
        numbers = require_boxes(more["boxes"]).tiles(store, numbers).tolist()
    elif objects != "whole":  # several objects: tiles without any have no one to ask for
        positive = labels.positive(store, numbers)
        numbers = [number for number, count in zip(numbers, positive, strict=True) if count]
    if not len(numbers):
        return None
    dataset = EmbeddingDataset(
        store,
        labels,
        prompts=prompts,
        tiles=list(numbers),
        seed=options.seed,
        objects=objects,
        max_objects=options.max_objects,
        store_index=index,
        **more,
    )
    return Held(dataset, tuple(int(number) for number in dataset.tiles))


def _count(part: Part) -> int:
    return sum(len(numbers) for _, numbers in part)
