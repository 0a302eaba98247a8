"""Turns stores and labels, as a caller names them, into pairs opened as the checkpoint's run opened its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, InputError, counted
from embedcache.results.as_trained import default_prompts, labels_as_trained
from embedcache.results.evaluated_tiles import ChosenTiles, choose_tiles
from embedcache.results.opened import open_store
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint, check_space
from embedcache.train.questions.prompts import check_prompts
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.split import Split, store_identity

One = str | Path
Each = One | Sequence[One | None] | None
Stores = EmbeddingStore | One | Sequence[EmbeddingStore | One]
Truths = Labels | One | Sequence[Labels | One]


@dataclass(frozen=True)
class Pair:
    """A store, its labels, and the files that go with them; None: those of the run."""

    store: EmbeddingStore | One
    labels: Labels | One
    supervision: One | None = None
    start: One | None = None
    boxes: One | None = None

    @property
    def is_as_trained(self) -> bool:
        """Whether nothing was given that the run may have had otherwise."""
        nothing = self.supervision is None and self.start is None and self.boxes is None
        return nothing and not isinstance(self.labels, Labels)


@dataclass(frozen=True)
class OpenedPair:
    """A pair, opened: what is measured on one store."""

    pair: Pair
    store: EmbeddingStore
    truth: Labels
    tiles: ChosenTiles


def paired(stores: Stores, labels: Truths, **files: Each) -> list[Pair]:
    """One pair for each store; a file that is given once goes with all of them.

    Raises
    ------
    ConfigError
        When there are not as many of one as of the other.
    """
    store_list = _listed(stores, EmbeddingStore)
    label_list = _listed(labels, Labels)
    if len(store_list) != len(label_list) or not store_list:
        raise ConfigError(
            f"{counted(len(store_list), 'store')} and labels for {len(label_list)}: give them in pairs.",
            hint="The first labels belong to the first store, and so on.",
        )
    rows: dict[str, list[Any]] = {}
    for name, given in files.items():
        row = [given] * len(store_list) if given is None or isinstance(given, str | Path) else list(given)
        if len(row) not in (1, len(store_list)):
            raise ConfigError(
                f"{counted(len(store_list), 'store')}, but {name} was given {len(row)} times.",
                hint="Give one for all stores, or one for each in their order.",
            )
        rows[name] = row * len(store_list) if len(row) == 1 else row
    return [
        Pair(store, label, **{name: row[index] for name, row in rows.items()})
        for index, (store, label) in enumerate(zip(store_list, label_list, strict=True))
    ]


def _listed(given: Any, single: type) -> list[Any]:
    return [given] if isinstance(given, str | Path | single) else list(given)


def open_pair(pair: Pair, trained: Checkpoint | None, split: str | None) -> OpenedPair:
    """Open a store and its labels, and choose the tiles of a part.

    Raises
    ------
    InputError
        When the store is none.
    MismatchError, LabelError, MissingTilesError, ConfigError
        As :func:`embedcache.results.evaluate`.
    """
    store = open_store(pair.store)
    if store is None:
        raise InputError(f"{pair.store} is no store of embeddings.", hint="embedcache status lists stores.")
    if trained is not None:
        check_space(trained, store)
    truth = (
        pair.labels
        if isinstance(pair.labels, Labels)
        else labels_as_trained(pair.labels, store, trained, pair.supervision)
    )
    tiles = choose_tiles(store, truth, trained, split)
    if trained is not None and tiles.part == "val":
        _require_its_mask(trained, truth)
    # of a run that was given a validation mask only the pixels of that mask validate
    return OpenedPair(pair, store, truth.validating() if tiles.part == "val" else truth, tiles)


def _require_its_mask(trained: Checkpoint, truth: Labels) -> None:
    """Refuse labels without the mask within which a run validates: pixels beside it would count."""
    split = Split.from_dict(trained.split)
    if split.kind == "mask" and truth.validation_source is None:
        raise ConfigError(
            f"Of this run {split.rule}; the labels {truth.source} were opened without that mask.",
            hint="Give the labels' path and the run's folder, or labels that are opened with validation=MASK.",
        )


def require_once(stores: Sequence[EmbeddingStore]) -> None:
    """Refuse a store that was given twice: each of its pixels would count twice among all.

    Raises
    ------
    ConfigError
        Naming it.
    """
    known = [store_identity(store) for store in stores]
    twice = next((store for store, own in zip(stores, known, strict=True) if known.count(own) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice.address} was given twice; each of its pixels would count twice.")


def asked_with(opened: Sequence[OpenedPair], trained: Checkpoint | None, prompts: str | None) -> str:
    """What all stores are asked with: what is given, or what follows from the boxes, the run or the labels.

    Raises
    ------
    ConfigError
        For an unknown kind, boxes beside another one, and labels of which some are objects and some are not.
    """
    boxes = any(one.pair.boxes is not None for one in opened)
    kinds = sorted({default_prompts(trained, one.truth) for one in opened})
    if prompts is None and not boxes and len(kinds) > 1:
        raise ConfigError(
            f"Some of the labels are masks and some objects: they are asked with {' and '.join(kinds)}.",
            hint="Evaluate them apart, or say with --prompts how to ask for all.",
        )
    asked = check_prompts(prompts or ("boxes" if boxes else kinds[0]))
    if boxes and asked != "boxes":
        raise ConfigError(f"--boxes is what --prompts boxes asks with; the prompts are {asked}.")
    return asked
