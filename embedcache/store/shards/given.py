"""Turns what is known of tiles of one shard into ``GivenTiles``, and refuses what the store cannot keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedcache.errors import EmbedcacheError
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store.journal.record import DIGEST_BYTES
from embedcache.store.shards.quantise import NO_VALUE, Quantised
from embedcache.store.shards.scales import CHANNELS
from embedcache.store.shards.shard import FLOAT16, INT8, Form, Stored

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

Embeddings = Mapping[int, Stored]


@dataclass(frozen=True)
class GivenTiles:
    """What is now known of tiles of one shard; all keys are tile numbers."""

    embeddings: Embeddings
    input_digests: Mapping[int, str]
    skipped: Mapping[int, str]
    failed: Mapping[int, str]


def check_tiles(store: EmbeddingStore, shard: int, given: GivenTiles) -> int:
    """First tile number of the shard, once all that was given is known to be fit to be stored."""
    base = shard * store.shard_tiles
    numbers = [*given.embeddings, *given.skipped, *given.failed]
    if len(set(numbers)) != len(numbers):
        raise EmbedcacheError(f"shard {shard}: a tile is given as two of encoded, skipped and failed")
    for tile in numbers:
        if not (base <= tile < base + store.shard_tiles and 0 <= tile < len(store)):
            raise EmbedcacheError(f"tile {tile} does not belong to shard {shard} of {store.path}")
        if store.table[tile, 0] < 0:
            raise EmbedcacheError(f"number {tile} of {store.path} has no tile")
    for tile, stored in given.embeddings.items():
        _check_form(tile, stored, store.form)
        if len(given.input_digests.get(tile, "")) != 2 * DIGEST_BYTES:
            raise EmbedcacheError(f"tile {tile}: no SHA-256 of its input pixels")
    return base


def _check_form(tile: int, stored: Stored, form: Form) -> None:
    if isinstance(stored, Quantised):
        found = f"{stored.values.shape}, {stored.values.dtype}, scales {stored.scales.shape}"
        fits = form == INT8 and stored.values.dtype == np.int8 and stored.scales.dtype == np.float32
        fits = fits and stored.values.shape == EMBEDDING_SHAPE and stored.scales.shape == (CHANNELS,)
        fits = fits and stored.values.min() > NO_VALUE and not (stored.scales < 0).any()
    else:
        found = f"{stored.shape}, {stored.dtype}"
        fits = form == FLOAT16 and stored.shape == EMBEDDING_SHAPE and stored.dtype == np.float16
    if not fits:
        raise EmbedcacheError(f"tile {tile}: no embedding as this store of {form.dtype} keeps it ({found})")
