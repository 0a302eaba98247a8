"""Turns label planes into pixels for questions about them: a sample, tiles on labelled planes, small ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import LabelError
from embedcache.store import EmbeddingStore
from embedcache.train.truth.alignment import AlignedPlanes

SAMPLED_PIECES = 12


def labelled_numbers(store: EmbeddingStore, planes: Iterable[int]) -> npt.NDArray[np.int64]:
    """Numbers of a store's base tiles on the given planes; tiles of other views lie where these do."""
    return np.flatnonzero(np.isin(store.table[:, 0], sorted(planes)) & store.base).astype(np.int64)


def sample_pixels(aligned: AlignedPlanes, store: EmbeddingStore) -> Iterator[npt.NDArray[Any]]:
    """Label pixels of some tiles: evenly spread ones, and on until a few with something in them were seen."""
    numbers = labelled_numbers(store, aligned.plane_of)
    if len(numbers) == 0:
        raise LabelError(f"{aligned.volume.source} labels no plane of the store {store.path}.")
    spread = np.unique(np.linspace(0, len(numbers) - 1, SAMPLED_PIECES).astype(int))
    order = [*spread, *np.setdiff1d(np.arange(len(numbers)), spread)]
    seen: set[tuple[int, ...]] = set()
    filled = 0
    for turn, index in enumerate(order):
        if turn >= len(spread) and filled >= 3:
            return
        tile = store.tile(int(numbers[index]))
        region = (aligned.plane_of[tile.plane], tile.y0, tile.x0, tile.height, tile.width)
        if region in seen:
            continue
        seen.add(region)
        pixels = aligned.read(tile)
        filled += bool(pixels.any())
        if turn < len(spread) or pixels.any():
            yield pixels


def without(pixels: npt.NDArray[Any], ignore: int | None) -> npt.NDArray[Any]:
    """Pixels with 0 in place of the ignored value."""
    return pixels if ignore is None else np.where(pixels == ignore, pixels.dtype.type(0), pixels)


def small_ids(ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Ids that do not fit int32 as 1, 2, …, background 0; only the equality of ids within a tile matters."""
    values, inverse = np.unique(ids, return_inverse=True)
    positive = np.cumsum(values > 0) * (values > 0)
    return np.asarray(positive[inverse].reshape(ids.shape), dtype=np.int64)
