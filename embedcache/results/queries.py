"""Turns a kind of prompts that knows nothing of the truth into what each batch of tiles is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from embedcache.errors import counted
from embedcache.progress import Progress, Silent
from embedcache.sam.decoder import Prompts
from embedcache.store import EmbeddingStore
from embedcache.train.questions.box_prompts import BoxPrompts, open_boxes, require_boxes
from embedcache.train.questions.mask_prompts import MaskPrompts, open_mask_prompts, require_start
from embedcache.train.questions.prompts import collate_prompts, make_prompts

MOST_QUERIES = 64
"""Answers that are held at a time, each of 256 KiB, where tiles are asked unequally often."""


@dataclass(frozen=True)
class Asked:
    """What the tiles of a batch are asked.

    Parameters
    ----------
    counts : tuple of int
        How often each of them; 0: not at all.
    prompts : Prompts, optional
        Of those that are asked, tile by tile; None when none of them is.
    """

    counts: tuple[int, ...]
    prompts: Prompts | None

    @classmethod
    def of(cls, prompts: Prompts) -> Asked:
        """All of them are asked."""
        return cls(prompts.counts, prompts)

    @property
    def speaking(self) -> list[int]:
        """Places of the tiles that are asked."""
        return [place for place, count in enumerate(self.counts) if count]

    def calls(self) -> Iterator[tuple[slice, Prompts]]:
        """Which of the tiles that are asked come together in a call of the decoder, and their prompts."""
        prompts = self.prompts
        if prompts is None:
            return
        counts = prompts.counts
        if max(counts) == 1 or sum(counts) <= MOST_QUERIES:
            yield slice(0, len(counts)), prompts
            return
        for place, count in enumerate(counts):
            own = prompts.of_images(slice(place, place + 1))
            for first in range(0, count, MOST_QUERIES):
                yield slice(place, place + 1), own.of_rows(slice(first, first + MOST_QUERIES))


PromptsOf = Callable[[list[int]], Asked]
"""What gives the prompts of a batch of tile numbers."""


def free_prompts(numbers: list[int]) -> Asked:
    """No prompt at all: one prompt-free query per tile, which asks for everything the decoder was trained on."""
    return Asked.of(Prompts.none(len(numbers)))


def unsigned_grid(store: EmbeddingStore) -> PromptsOf:
    """A regular grid of points, all labelled 1, on each tile of a store."""

    def prompts_of(numbers: list[int]) -> Asked:
        nothing = np.random.default_rng(0)  # an unsigned grid draws nothing
        tiles = [store.tile(number) for number in numbers]
        grids = [make_prompts("grid:free", np.zeros((1, t.height, t.width), bool), t, nothing) for t in tiles]
        return Asked.of(collate_prompts(grids, [1] * len(numbers)))

    return prompts_of


def earlier_masks(start: MaskPrompts, store: EmbeddingStore) -> PromptsOf:
    """What an earlier prediction says of each tile, as mask prompt."""

    def prompts_of(numbers: list[int]) -> Asked:
        masks = np.stack([start.logits(store.tile(number))[None] for number in numbers])
        return Asked.of(Prompts((1,) * len(numbers), mask_input=torch.from_numpy(masks)))

    return prompts_of


def user_boxes(boxes: BoxPrompts, store: EmbeddingStore) -> PromptsOf:
    """A query for each of a user's boxes on a tile; tiles without any are not asked."""

    def prompts_of(numbers: list[int]) -> Asked:
        tiles = [store.tile(number) for number in numbers]
        found = [boxes.for_frame(tile) for tile in tiles]
        counts = tuple(0 if own.boxes is None else len(own.boxes) for own in found)
        asked = [(own, count) for own, count in zip(found, counts, strict=True) if count]
        if not asked:
            return Asked(counts, None)
        return Asked(counts, collate_prompts([own for own, _ in asked], [count for _, count in asked]))

    return prompts_of


def prompts_for(
    prompts: str,
    store: EmbeddingStore,
    numbers: npt.NDArray[np.int64],
    start: str | Path | None,
    labels: str | None = None,
    boxes: str | Path | None = None,
    progress: Progress | None = None,
) -> PromptsOf:
    """Prompts of a free kind: none, grid:free, boxes of a user's file, or mask.

    ``mask`` needs predictions to start from, which must not be the labels.

    Raises
    ------
    ConfigError, LabelError
        When these are missing, or do not fit the store.
    """
    if prompts == "none":
        return free_prompts
    if prompts == "mask":
        opened = None if start is None else open_mask_prompts(start, store)
        return earlier_masks(require_start(opened, store, numbers, labels), store)
    if prompts == "boxes":
        found = require_boxes(None if boxes is None else open_boxes(boxes, store))
        with_some = len(found.tiles(store, numbers))
        (progress or Silent()).say(
            f"{found.source}: {found.alignment}; {with_some} of {counted(len(numbers), 'tile')} have one, "
            "the others are background."
        )
        return user_boxes(found, store)
    return unsigned_grid(store)
