"""Turns places that might be held out into choices, and these into the first that leaves both parts something."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from embedcache.errors import LabelError, counted
from embedcache.train.truth.places import Tiles

Kind = Literal["stores", "images", "planes", "spatial", "overfit", "mask"]


@dataclass(frozen=True)
class Choice:
    """Which tiles train and which validate, and the rule in words; bool (n,) over a table of tiles."""

    kind: Kind
    rule: str
    train: npt.NDArray[np.bool_]
    val: npt.NDArray[np.bool_]


def first_useful(candidates: Iterable[Choice], tiles: Tiles) -> Choice:
    """The first candidate with positives on both sides."""
    tried = 0
    for choice in candidates:
        tried += 1
        if tiles.positive[choice.val].any() and tiles.positive[choice.train].any():
            return choice
    raise LabelError(
        f"No split leaves positives on both sides: tried for validation: {counted(tried, 'place')} among "
        f"{counted(len(tiles.number), 'tile')}, {int((tiles.positive > 0).sum())} of them with positives.",
        hint="Encode with smaller tiles (--tile), give more labels, or name the planes or images with --val.",
    )
