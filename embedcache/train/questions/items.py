"""Turns a question and its embedding into an item, and items into a batch: the public way of one's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedcache.geometry import Tile
from embedcache.train.questions.batch import Batch, TileQuestion, collate_questions
from embedcache.train.questions.prompts import TilePrompts


@dataclass(frozen=True, eq=False)
class TrainingItem:
    """One tile, ready for the decoder.

    Parameters
    ----------
    question : TileQuestion
        What it is asked.
    image_embedding : float32 (256, 64, 64)
    """

    question: TileQuestion
    image_embedding: Tensor

    @property
    def number(self) -> int:
        """The tile's number in its store."""
        return self.question.number

    @property
    def tile(self) -> Tile:
        """Its place, as seen."""
        return self.question.tile

    @property
    def low_res_masks(self) -> Tensor:
        """Targets, float32 (P, 256, 256), 0 or 1; P ≥ 1."""
        return self.question.targets.float()

    @property
    def weight(self) -> Tensor:
        """Float32 (256, 256): 0 in the padding and where nothing counts, else 1."""
        return self.question.weight.float()

    @property
    def prompts(self) -> TilePrompts:
        """For the P objects, in the 1024 frame."""
        return self.question.prompts


def collate(items: Sequence[TrainingItem]) -> Batch:
    """Items as one ragged batch for one call of the decoder; use it as a DataLoader's ``collate_fn``."""
    return collate_questions(
        [item.question for item in items], torch.stack([item.image_embedding for item in items])
    )
