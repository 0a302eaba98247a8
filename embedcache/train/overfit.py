"""Turns a few tiles into both halves of a split: can this training learn at all? Its figures say nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedcache.errors import ConfigError, LabelError, counted
from embedcache.store import EmbeddingStore
from embedcache.train.options import TrainOptions
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.places import gather
from embedcache.train.truth.split import Split, store_identity


def for_overfitting(options: TrainOptions) -> TrainOptions:
    """The options with which tiles are learned by heart: nothing is varied, and nothing ends it early.

    Raises
    ------
    ConfigError
        When other tiles are to be held out.
    """
    if options.val != "auto":
        raise ConfigError(f"--overfit validates on what it trains on; leave --val {options.val} out.")
    if options.validation is not None:
        raise ConfigError("--overfit validates on what it trains on; leave --validation out.")
    return replace(options, jitter=False, views="off", patience=0)


def overfit_split(stores: Sequence[EmbeddingStore], labels: Sequence[Labels], count: int) -> Split:
    """The ``count`` tiles with the most positives train and validate.

    Raises
    ------
    LabelError
        When no tile has any.
    """
    tiles = gather(list(stores), list(labels))
    order = np.argsort(-tiles.positive, kind="stable")[:count]
    chosen = order[tiles.positive[order] > 0]
    if len(chosen) == 0:
        raise LabelError("No encoded tile has anything positive in its labels, so there is nothing to learn.")
    held = np.zeros(len(tiles.number), dtype=np.bool_)
    held[chosen] = True
    part = tiles.part(held)
    rule = (
        f"{counted(len(chosen), 'tile')} with the most positives, for training and validation; "
        "figures say nothing about unseen tiles"
    )
    return Split("overfit", rule, part, part, tuple(store_identity(store) for store in stores))
