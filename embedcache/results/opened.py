"""Turns what a caller names (a store, a run, a path, a threshold) into what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, InputError
from embedcache.store import EmbeddingStore
from embedcache.train.asking.metrics import probability
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.run import read_json


def as_checkpoint(checkpoint: Any) -> Checkpoint:
    """A checkpoint from itself, a run, or the path of either."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    return Checkpoint.load(getattr(checkpoint, "checkpoint", checkpoint))


def open_store(source: EmbeddingStore | str | Path) -> EmbeddingStore | None:
    """The store, or None when ``source`` is the path of something else."""
    if isinstance(source, EmbeddingStore):
        return source
    try:
        return EmbeddingStore.open(source)
    except InputError:
        return None


def probability_threshold(checkpoint: Checkpoint | None, threshold: float | None) -> float:
    """The threshold as a probability: the one given, the checkpoint's (kept as a logit), or SAM's logit 0.

    Raises
    ------
    ConfigError
        When the one given does not lie between 0 and 1.
    """
    if threshold is not None:
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(
                f"--threshold is {threshold}; it is a probability between 0 and 1.",
                hint="A run's summary gives its threshold in logits; without --threshold that one is taken.",
            )
        return float(threshold)
    return 0.5 if checkpoint is None else probability(checkpoint.threshold)


def untrained_threshold(checkpoint: Checkpoint | None, prompts: str) -> float:
    """The probability at which the untrained decoder was best on validation, when the checkpoint's run began.

    Both then have a threshold by the same rule: else a gain would be that of the threshold alone. 0.5 where no
    run is known, or it was measured with other prompts.
    """
    if checkpoint is None or checkpoint.path is None or prompts != checkpoint.measured_prompts:
        return 0.5
    measured = checkpoint.path.parent / "baseline.json"
    return probability(float(read_json(measured)["threshold"])) if measured.is_file() else 0.5
