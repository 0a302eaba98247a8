"""Views for the made-up stores of ``training_stores``: embeddings that show the moved labels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from training_stores import embedding_of

from embedcache.geometry import VIEW_SETS, see
from embedcache.store import EmbeddingStore


def give_views(
    store: EmbeddingStore, labels: npt.NDArray[np.generic], views: Collection[int] = VIEW_SETS["flips"]
) -> EmbeddingStore:
    """Commit further views of all committed base tiles of a store of a (Z, Y, X) volume of labels."""
    there = store.committed & store.base
    with store.writer() as writer:
        writer.add_views(views)
        chosen = there[store.base_of(np.arange(len(store)))] & np.isin(store.view_of, list(views))
        writer.add_selection({"views": sorted(views)}, chosen)
        missing = np.flatnonzero(store.missing & chosen)
        for shard in np.unique(missing // store.shard_tiles).tolist():
            embeddings = {}
            for number in missing[missing // store.shard_tiles == shard].tolist():
                tile = store.tile(number)
                mask = see(labels[tile.plane][tile.slices] > 0, tile.view)
                embeddings[number] = embedding_of(np.ascontiguousarray(mask), tile.seen, number)
            digests = {number: f"{number:064x}" for number in embeddings}
            writer.commit_shard(shard, embeddings=embeddings, input_digests=digests)
    return store
