"""Turns paths of stores and labels into opened pairs that can train together, and says how they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import ConfigError, LabelError, MismatchError, command, counted
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.train.options import TrainOptions
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.naming import named_images, require_images
from embedcache.train.truth.needed import require_tiles
from embedcache.train.truth.task import Task
from embedcache.train.truth.whole_stores import STORE, store_indices

StoreLike = EmbeddingStore | str | Path
LabelsLike = Labels | str | Path


def open_pairs(
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
    if not options.overfit:
        _require_held_out(opened, options.val.strip())
    found = tuple(
        open_labels_of(path, store, options, index, len(opened))
        for index, (store, path) in enumerate(zip(opened, paths, strict=True))
    )
    for store, label in zip(opened, found, strict=True):
        _tell(store, label, options, progress)
    return opened, found


def _require_held_out(stores: Sequence[EmbeddingStore], spec: str) -> None:
    """Refuse names in ``--val`` that are none, before labels are read; whether they are labelled is seen then."""
    if spec.startswith(STORE):
        store_indices(stores, spec)
    elif named_images(spec):
        require_images(spec, (name for store in stores for name in _plane_names(store)))


def _plane_names(store: EmbeddingStore) -> list[str]:
    planes = len(store.images) or int(np.asarray(store.table)[:, 0].max(initial=-1)) + 1
    return [store.plane_name(plane) for plane in range(planes)]


def open_labels_of(
    labels: LabelsLike, store: EmbeddingStore, options: TrainOptions, index: int, stores: int
) -> Labels:
    """The labels of the ``index``-th of so many stores, as the options say; open ones are taken as they are."""
    supervision = options.supervision_of(index, stores)
    validation = options.validation_of(index, stores)
    if isinstance(labels, Labels):
        _require_as_opened(labels, supervision, validation, options)
        return labels
    return open_labels(
        labels,
        store,
        supervision=supervision,
        validation=validation,
        task=options.task,
        ignore=options.ignore,
    )


def _require_as_opened(
    labels: Labels, supervision: str | Path | None, validation: str | Path | None, options: TrainOptions
) -> None:
    """Refuse options that say how to open labels which are open already, in another way."""
    opened = {
        "--task": (None if options.task == "auto" else options.task, labels.kind),
        "--ignore": (options.ignore, labels.ignore),
        "--supervision": (_resolved(supervision), _resolved(labels.supervision_source)),
        "--validation": (_resolved(validation), _resolved(labels.validation_source)),
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


def one_task(labels: Sequence[Labels]) -> Task:
    """The task of all labels; LabelError when they are of two."""
    kinds = {label.kind for label in labels}
    if len(kinds) > 1:
        listed = ", ".join(f"{label.source}: {label.kind}" for label in labels)
        raise LabelError(
            f"Labels of several stores must be of one task, but found {listed}.",
            hint="Say which with --task semantic or --task instances.",
        )
    return labels[0].kind


def _open(store: StoreLike) -> EmbeddingStore:
    return store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
