"""Turns stores and labels into one table of the encoded, labelled tiles: where they lie, what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.store import EmbeddingStore
from embedcache.train.truth.labels import Labels

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """The table; every column has one row per tile.

    Parameters
    ----------
    store, number, plane : int64 (n,)
        Index of the store, tile number in it, plane in it.
    corner, extent : int64 (n, 2)
        (y, x) of the top left corner and (height, width), volume px.
    positive : int64 (n,)
        Supervised positive pixels.
    """

    store: Ints
    number: Ints
    plane: Ints
    corner: Ints
    extent: Ints
    positive: Ints

    def part(self, chosen: npt.NDArray[np.bool_]) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """The chosen tiles as (store index, tile numbers), one entry per store that has any."""
        return tuple(
            (int(index), tuple(int(n) for n in self.number[chosen & (self.store == index)]))
            for index in np.unique(self.store[chosen])
        )


def gather(stores: Sequence[EmbeddingStore], labels: Sequence[Labels]) -> Tiles:
    """The committed tiles that the labels touch, of all stores."""
    rows, numbers, owners, positives = [], [], [], []
    for index, (store, label) in enumerate(zip(stores, labels, strict=True)):
        touched = label.tiles(store)
        touched = touched[store.committed[touched]]
        numbers.append(touched)
        rows.append(np.asarray(store.table)[touched, :5])
        owners.append(np.full(len(touched), index, dtype=np.int64))
        positives.append(label.positive(store, touched))
    table = np.concatenate(rows)
    return Tiles(
        store=np.concatenate(owners),
        number=np.concatenate(numbers),
        plane=table[:, 0],
        corner=table[:, 1:3],
        extent=table[:, 3:5],
        positive=np.concatenate(positives),
    )
