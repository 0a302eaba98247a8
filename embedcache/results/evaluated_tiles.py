"""Turns a checkpoint's split and labels into the tiles that an evaluation measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, LabelError, MissingTilesError, command
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.split import Part, Split, make_split

SPLITS = ("val", "train", "all")


@dataclass(frozen=True)
class ChosenTiles:
    """The tiles that are measured.

    Parameters
    ----------
    part, rule : str
        The part's name, and how it was chosen, in words.
    numbers : ndarray of int64
        All of them encoded.
    missing : int
        Further labelled tiles of the part that were to be encoded and are not (empty, failed, or not yet): they do
        not count.
    """

    part: str
    rule: str
    numbers: npt.NDArray[np.int64]
    missing: int


def choose_tiles(
    store: EmbeddingStore, labels: Labels, checkpoint: Checkpoint | None, split: str | None
) -> ChosenTiles:
    """Choose the tiles of a part that are labelled and encoded.

    Raises
    ------
    ConfigError
        For a part that a checkpoint does not have of this store.
    LabelError, MissingTilesError
        When nothing of it is labelled or encoded.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"--split is {split!r}; it must be one of {', '.join(SPLITS)}.")
    touched = labels.tiles(store)
    touched = touched[store.base[touched]]  # each place once, however often it was seen
    known = None if checkpoint is None else Split.from_dict(checkpoint.split)
    if split == "all":
        part, rule, numbers = (
            "all",
            "every labelled tile; trained-on tiles are among them where there are any",
            touched,
        )
    elif known is not None and (own := known.of_store(split or "val", store)) is not None:
        part = "overfit" if known.kind == "overfit" else split or "val"
        rule, numbers = known.rule, np.intersect1d(own, touched)
    elif checkpoint is None and split is not None:
        part, made = split, make_split(store, labels)
        rule, numbers = made.rule, _numbers_of(made.val if part == "val" else made.train)
    elif checkpoint is None:
        part, rule, numbers = "all", "every labelled tile; nothing was trained", touched
    elif split is not None:
        raise ConfigError(
            f"--split {split}: the checkpoint {checkpoint.path} was not trained on the store {store.path}.",
            hint="Leave --split out, or give --split all: no tile of this store was trained on.",
        )
    else:
        part, rule, numbers = (
            "all",
            "every labelled tile; the checkpoint was not trained on this store",
            touched,
        )
    if len(numbers) == 0:
        raise LabelError(
            f"The labels {labels.source} touch no tile of the {part} part of {store.path} ({rule})."
        )
    encoded = numbers[store.committed[numbers]]
    if len(encoded) == 0:
        raise MissingTilesError(
            f"Not one of the {len(numbers)} labelled tiles of the {part} part is encoded in {store.path}.",
            hint="Encode them: "
            + command(
                *("encode", "--volume", store.provenance.get("source") or "VOLUME"),
                *("--like", store.path, "--store", store.path),
            ),
        )
    missing = int(store.wanted[numbers].sum() - store.wanted[encoded].sum())
    return ChosenTiles(part, rule, np.asarray(encoded, dtype=np.int64), missing)


def _numbers_of(part: Part) -> npt.NDArray[np.int64]:
    return np.array([number for _, numbers in part for number in numbers], dtype=np.int64)
