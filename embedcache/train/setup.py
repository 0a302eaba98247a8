"""Turns stores, label paths and options into all a training loop needs, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, LabelError, MismatchError, command, counted
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.train.asking.validation import Held
from embedcache.train.options import TrainOptions
from embedcache.train.overfit import overfit_split
from embedcache.train.questions.box_prompts import BoxPrompts, open_boxes
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.mask_prompts import MaskPrompts, open_mask_prompts
from embedcache.train.questions.objects import check_objects, default_objects
from embedcache.train.questions.prompts import FREE_SHARE, prompt_source
from embedcache.train.start import require_unseen
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.needed import require_tiles
from embedcache.train.truth.split import Part, Split, make_split
from embedcache.train.truth.task import Task

StoreLike = EmbeddingStore | str | Path
LabelsLike = Labels | str | Path


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
    opened, found = _opened(stores, labels, options, progress)
    task = _one_task(found)
    prompts = options.prompts or ("none" if task == "semantic" else "iterative")
    objects = check_objects(options.objects or default_objects(task, prompts), task, prompts)
    split = _split(opened, found, options, progress)
    starts = _starts(opened, prompts, options, progress)
    boxes = _boxes(opened, prompts, options, progress)
    if prompts != "iterative" and options.rounds != TrainOptions.rounds:
        progress.say(f"--rounds {options.rounds} has no effect: prompts {prompts} are asked once.")
    free = task == "semantic" and prompt_source(prompts) == "oracle"
    val_prompts = "none" if free else prompts
    drawn_anew = {
        "rounds": options.rounds,
        "views": options.views == "auto",
        "jitter": options.jitter,
        "free_share": FREE_SHARE if free else 0.0,
    }

    def hold(part: Part, prompts: str, objects: str, **more: Any) -> tuple[Held, ...]:
        held = (
            _hold(
                opened[i],
                found[i],
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

    return Setup(
        stores=opened,
        labels=found,
        task=task,
        prompts=prompts,
        objects=objects,
        split=split,
        train=hold(split.train, prompts, objects, **drawn_anew),
        val=hold(split.val, val_prompts, "whole" if free else objects),
        val_source=prompt_source(val_prompts),
        interactive=hold(split.val, prompts, objects) if free else (),
    )


def _opened(
    stores: StoreLike | Sequence[StoreLike],
    labels: LabelsLike | Sequence[LabelsLike],
    options: TrainOptions,
    progress: Progress,
) -> tuple[tuple[EmbeddingStore, ...], tuple[Labels, ...]]:
    """Stores of one space and their labels, in pairs."""
    opened = tuple(_open(store) for store in _as_list(stores))
    paths = _as_list(labels)
    if len(opened) != len(paths):
        raise ConfigError(f"{counted(len(opened), 'store')}, but labels of {len(paths)}; they come in pairs.")
    _require_one_space(opened)
    for number, store in enumerate(opened):
        if store.fingerprint in {other.fingerprint for other in opened[:number]}:
            raise ConfigError(f"{store.path} was given twice; each of its tiles would count twice.")
    found = tuple(
        open_labels_of(path, store, options, index, len(opened))
        for index, (store, path) in enumerate(zip(opened, paths, strict=True))
    )
    for store, label in zip(opened, found, strict=True):
        _tell(store, label, options, progress)
    return opened, found


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


def open_labels_of(
    labels: LabelsLike, store: EmbeddingStore, options: TrainOptions, index: int, stores: int
) -> Labels:
    """The labels of the ``index``-th of so many stores, as the options say; open ones are taken as they are."""
    supervision = options.supervision_of(index, stores)
    if options.validation_of(index, stores) is not None:
        raise ConfigError("--validation: this version holds tiles out by --val only.")
    if isinstance(labels, Labels):
        _require_as_opened(labels, supervision, options)
        return labels
    return open_labels(labels, store, supervision=supervision, task=options.task, ignore=options.ignore)


def _require_as_opened(labels: Labels, supervision: str | Path | None, options: TrainOptions) -> None:
    """Refuse options that say how to open labels which are open already, in another way."""
    opened = {
        "--task": (None if options.task == "auto" else options.task, labels.kind),
        "--ignore": (options.ignore, labels.ignore),
        "--supervision": (_resolved(supervision), _resolved(labels.supervision_source)),
    }
    for name, (wanted, found) in opened.items():
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"{name} is {wanted}, but the labels {labels.source} were opened with {found}.",
                hint="Open them as they shall be read, or give their path.",
            )


def _resolved(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser().resolve()


def _tell(store: EmbeddingStore, labels: Labels, options: TrainOptions, progress: Progress) -> None:
    """Refuse labels that touch missing tiles; say how the others lie, and what is left out."""
    progress.say(f"{labels.source}: {labels.alignment}")
    left_out = require_tiles(store, labels, allow_partial=options.allow_partial)
    if left_out:
        progress.say(f"{store.address}: {left_out}")
    uncounted = labels.uncounted(store)
    if uncounted:
        progress.say(f"{store.address}: left out, as nothing in them counts: {counted(uncounted, 'tile')}.")


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
    if prompts == "boxes" and options.boxes is None:
        raise ConfigError("Prompts of kind boxes need boxes of your own.", hint="Give --boxes.")
    found: list[BoxPrompts | None] = []
    for index, store in enumerate(stores):
        path = options.boxes_of(index, len(stores))
        boxes = None if path is None else open_boxes(path, store)
        if boxes is not None:
            progress.say(f"{boxes.source}: {boxes.alignment}")
        found.append(boxes)
    return found


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
    if objects != "whole":  # several objects: tiles without any have no one to ask for
        positive = labels.positive(store, numbers)
        numbers = [number for number, count in zip(numbers, positive, strict=True) if count]
        if not numbers:
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


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _require_one_space(stores: Sequence[EmbeddingStore]) -> None:
    for store in stores[1:]:
        if store.embedding_space != stores[0].embedding_space:
            raise MismatchError(
                f"{store.path} and {stores[0].path} hold embeddings of two spaces; they cannot train together.",
                differences={
                    name: values
                    for name, values in stores[0].spec.differences(store.spec).items()
                    if not name.startswith(("volume", "grid", "store_dtype"))
                },
                hint="Encode one of the volumes again: "
                + command(
                    "encode", "--like", stores[0].path, "--volume", store.provenance.get("source") or "VOLUME"
                ),
            )


def _one_task(labels: Sequence[Labels]) -> Task:
    kinds = {label.kind for label in labels}
    if len(kinds) > 1:
        listed = ", ".join(f"{label.source}: {label.kind}" for label in labels)
        raise LabelError(
            f"Labels of several stores must be of one task, but found {listed}.",
            hint="Say which with --task semantic or --task instances.",
        )
    return labels[0].kind


def _count(part: Part) -> int:
    return sum(len(numbers) for _, numbers in part)


def _open(store: StoreLike) -> EmbeddingStore:
    return store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
