"""Turns the questions of several tiles into what one training step asks the decoder.

A question is all of a training tile but its embedding: targets, weights, prompts, and every draw that its rounds
will need. What it holds depends on (seed, epoch, store, tile) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from embedcache.geometry import Tile
from embedcache.sam.prompts import Prompts
from embedcache.train.questions.prompts import TilePrompts, collate_prompts


@dataclass(frozen=True, slots=True)
class TileKey:
    """Which tile of a run.

    Parameters
    ----------
    store : int
        Index of its store in the run.
    number : int
        The base tile's number there.
    """

    store: int
    number: int


@dataclass(frozen=True, eq=False)
class TileQuestion:
    """What a tile is asked in an epoch, with P ≥ 1 objects and R rounds.

    Parameters
    ----------
    key : TileKey
    number : int
        The tile that is read: the drawn view of ``key``.
    tile : Tile
        As seen; all that follows is in its frame.
    targets : uint8 (P, 256, 256)
        0 or 1.
    whole : uint8 (256, 256)
        Everything positive in the tile: the target of a query without prompts.
    weight : uint8 (256, 256)
        0 in the padding and where nothing counts, else 1.
    prompts : TilePrompts
        The first prompts.
    begins_with_box : bool
        Whether the first prompt is the box rather than the point, where both were drawn.
    free : bool
        Whether it is asked once, without prompts, for ``whole``.
    draws : float64 (P, R)
        In [0, 1): where among the wrong cells the point before each round lies.
    speaks : tuple of bool, R long
        Whether a new point comes before each round; the first stands for the first prompt.
    """

    key: TileKey
    number: int
    tile: Tile
    targets: Tensor
    whole: Tensor
    weight: Tensor
    prompts: TilePrompts
    begins_with_box: bool
    free: bool
    draws: Tensor
    speaks: tuple[bool, ...]

    @property
    def first_prompts(self) -> TilePrompts:
        """What it is asked first, after its coins: nothing, the point or the box, or all that there is."""
        return TilePrompts() if self.free else self.prompts.one_of(box=self.begins_with_box)

    @property
    def queries(self) -> int:
        """How often it is asked in a round."""
        return 1 if self.free else len(self.targets)

    @property
    def worth(self) -> int:
        """How many asks each of its queries stands for: a free one for all that its tile would have had."""
        return len(self.targets) * len(self.speaks) if self.free else 1


@dataclass(frozen=True, eq=False)
class Batch:
    """B images with Q queries in all, image by image: one call of the decoder, and its rounds.

    Parameters
    ----------
    keys : tuple of TileKey
        One per image.
    image_embeddings : float16 or float32 (B, 256, 64, 64)
    targets : uint8 (Q, 256, 256)
        0 or 1.
    weights : uint8 (B, 256, 256)
        0 in the padding and where nothing counts, else 1.
    prompts : Prompts
        Of the first round; ``prompts.counts`` gives the queries of each image.
    draws : float64 (Q, R)
        In [0, 1): where among the wrong cells the point before each round lies.
    speaks : bool (B, R)
        Whether a new point comes before each round.
    numbers : tuple of int
        The tiles that were read, one per image.
    free : tuple of bool
        Which images are asked once, without prompts; empty: none. On the host, as it decides what is computed.
    told : tuple of tuple of bool
        ``speaks`` on the host, for the same reason.
    worth : tuple of int
        How many asks a query of each image stands for, on the host; empty: one. A tile without prompts counts
        as much as it would with them, although it is asked once.
    factors : float32 (Q,), optional
        The same for each query, where it is not one everywhere.
    """

    keys: tuple[TileKey, ...]
    image_embeddings: Tensor
    targets: Tensor
    weights: Tensor
    prompts: Prompts
    draws: Tensor
    speaks: Tensor
    numbers: tuple[int, ...]
    free: tuple[bool, ...] = ()
    told: tuple[tuple[bool, ...], ...] = ()
    worth: tuple[int, ...] = ()
    factors: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.told:
            object.__setattr__(self, "told", tuple(tuple(row) for row in self.speaks.tolist()))

    @property
    def rounds(self) -> int:
        """R: how often a query with prompts is asked."""
        return self.draws.shape[1]

    @property
    def asks(self) -> int:
        """Queries summed over the rounds of each; one without prompts is asked once, for all it stands for."""
        counts = self.prompts.counts
        free, worth = self.free or (False,) * len(counts), self.worth or (1,) * len(counts)
        return sum(
            stands if alone else count * self.rounds
            for count, alone, stands in zip(counts, free, worth, strict=True)
        )

    def per_query(self, values: Tensor) -> Tensor:
        """One value for each image, (B, …), as one for each of its queries, (Q, …)."""
        images = zip(values, self.prompts.counts, strict=True)
        return torch.cat([value.expand(count, *value.shape) for value, count in images])

    @property
    def low_res_masks(self) -> Tensor:
        """Targets as losses take them, float32 (Q, 256, 256)."""
        return self.targets.float()

    @property
    def weight(self) -> Tensor:
        """Each query with the weight of its image, float32 (Q, 256, 256)."""
        return self.per_query(self.weights.float())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; from pinned memory without waiting for the copies."""
        return self._each(
            lambda tensor: tensor.to(device, non_blocking=True), lambda prompts: prompts.to(device)
        )

    def pin(self) -> Batch:
        """The same batch in pinned memory; needs CUDA."""
        return self._each(Tensor.pin_memory, Prompts.pin)

    def _each(
        self, change: Callable[[Tensor], Tensor], change_prompts: Callable[[Prompts], Prompts]
    ) -> Batch:
        return replace(
            self,
            image_embeddings=change(self.image_embeddings),
            targets=change(self.targets),
            weights=change(self.weights),
            prompts=change_prompts(self.prompts),
            draws=change(self.draws),
            speaks=change(self.speaks),
            factors=None if self.factors is None else change(self.factors),
        )


def collate_questions(questions: Sequence[TileQuestion], image_embeddings: Tensor) -> Batch:
    """Questions of B tiles and their embeddings as one ragged batch, on the host.

    Parameters
    ----------
    questions : sequence of TileQuestion
        Of one number of rounds.
    image_embeddings : float16 or float32 (B, 256, 64, 64)
        Handed on as it is.
    """
    counts = [question.queries for question in questions]
    worth = tuple(question.worth for question in questions)
    return Batch(
        keys=tuple(question.key for question in questions),
        image_embeddings=image_embeddings,
        targets=torch.cat([q.whole[None] if q.free else q.targets for q in questions]),
        weights=torch.stack([question.weight for question in questions]),
        prompts=collate_prompts([question.first_prompts for question in questions], counts),
        draws=torch.cat([q.draws[:count] for q, count in zip(questions, counts, strict=True)]),
        speaks=torch.tensor([question.speaks for question in questions]),
        numbers=tuple(question.number for question in questions),
        free=tuple(question.free for question in questions),
        worth=worth,
        factors=torch.tensor(np.repeat(worth, counts), dtype=torch.float32) if max(worth) > 1 else None,
    )


@dataclass(frozen=True, eq=False)
class StepData:
    """One optimiser step's data: this process's share, on its device.

    Parameters
    ----------
    step, epoch : int
        Counted from 0; the epoch is that of the step's first image.
    images : int
        Images of this share.
    asks : int
        Its queries, summed over the rounds of each; a query without prompts is asked once.
    keys : tuple of TileKey
        Its tiles.
    calls : iterator of Batch
        Its batches, to be taken once; a step's gradient is summed over them.
    """

    step: int
    epoch: int
    images: int
    asks: int
    keys: tuple[TileKey, ...]
    calls: Iterator[Batch]
