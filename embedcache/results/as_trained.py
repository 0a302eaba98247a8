"""Turns a checkpoint into how its run read labels and asked, so that an evaluation does the same."""

from __future__ import annotations

from pathlib import Path

from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.run import read_json
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.split import Split

NO_MASK = "none"
"""As a path of a supervision mask: none at all, not even the run's own."""


def labels_as_trained(
    path: str | Path, store: EmbeddingStore, checkpoint: Checkpoint | None, supervision: str | Path | None
) -> Labels:
    """Open labels as the run did: the same task, ignored value, and masks unless another is given."""
    task = "auto" if checkpoint is None else checkpoint.task
    own = own_file("supervision", store, checkpoint) if supervision is None else supervision
    ignore = None if checkpoint is None else checkpoint.settings.get("ignore")
    return open_labels(
        path,
        store,
        supervision=None if own == NO_MASK else own,
        validation=own_file("validation", store, checkpoint),
        task=task,
        ignore=ignore,
    )


def was_trained_on(checkpoint: str | Path, store: str | Path) -> bool:
    """Whether a checkpoint's run used a store, in its training or to validate."""
    return Split.from_dict(Checkpoint.load(checkpoint).split).index_of(EmbeddingStore.open(store)) is not None


def own_file(name: str, store: EmbeddingStore, checkpoint: Checkpoint | None) -> str | None:
    """The file of this option that a checkpoint's run used on this store; None when there was none."""
    if checkpoint is None or checkpoint.path is None:
        return None
    config = checkpoint.path.parent / "config.json"
    index = Split.from_dict(checkpoint.split).index_of(store)
    if index is None or not config.is_file():
        return None
    path = read_json(config).get("options", {}).get(name)
    if isinstance(path, list):
        path = path[index]
    return None if path is None else str(path)


def default_prompts(checkpoint: Checkpoint | None, labels: Labels) -> str:
    """How the figure was measured that chose the checkpoint; without one, what suits the labels."""
    if checkpoint is not None:
        return checkpoint.measured_prompts
    return "none" if labels.kind == "semantic" else "box"
