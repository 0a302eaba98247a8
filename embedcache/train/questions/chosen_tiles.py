"""Turns the tiles that were asked for, or all that labels touch, into those of which something can be asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, LabelError, MissingTilesError, counted
from embedcache.store import EmbeddingStore
from embedcache.train.questions.box_prompts import BoxPrompts
from embedcache.train.truth.labels import Labels

Numbers = npt.NDArray[np.int64]


def chosen_tiles(
    store: EmbeddingStore,
    labels: Labels,
    tiles: Sequence[int] | Numbers | None,
    objects: str,
    boxes: BoxPrompts | None = None,
) -> Numbers:
    """Numbers of the tiles of a dataset.

    Parameters
    ----------
    store : EmbeddingStore
    labels : Labels
    tiles : sequence of int, optional
        Default: all encoded tiles that the labels touch.
    objects : "whole", "components" or "ids"
        Where objects are asked for one by one, tiles without any are left out.
    boxes : BoxPrompts, optional
        A user's boxes decide instead: tiles without any are left out.

    Raises
    ------
    ConfigError, MissingTilesError
        When a number that is given does not exist, or is not encoded.
    LabelError
        When no tile is left.
    """
    if tiles is None:
        touched = labels.tiles(store)
        chosen = touched[store.committed[touched]]
    else:
        chosen = _given(tiles, store)
    if len(chosen) and boxes is not None:
        chosen = boxes.tiles(store, chosen)
        if len(chosen) == 0:
            raise LabelError(
                f"No box of {boxes.source} lies on the tiles of {store.path} that are asked ({boxes.alignment}).",
                hint="Tiles without a box take no part; draw some where the labels are.",
            )
    elif objects != "whole":
        chosen = chosen[labels.positive(store, chosen) > 0]
    if len(chosen) == 0:
        raise LabelError(f"No encoded tile of {store.path} is labelled by {labels.source}.")
    return chosen


def _given(tiles: Sequence[int] | Numbers, store: EmbeddingStore) -> Numbers:
    """Tile numbers that were asked for, checked."""
    chosen = np.asarray(tiles, dtype=np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(store):
        raise ConfigError(f"Tile numbers {chosen.min()} to {chosen.max()} were given; {len(store)} exist.")
    absent = chosen[~store.committed[chosen]]
    if len(absent):
        raise MissingTilesError(
            f"{store.path} lacks {len(absent)} of {counted(len(chosen), 'tile')}, the first is number {absent[0]}."
        )
    return chosen
