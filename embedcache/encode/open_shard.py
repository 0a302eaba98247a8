"""Turns encoded, copied, skipped and failed tiles into what one commit of a shard takes."""

from __future__ import annotations

import time

import numpy as np

from embedcache.encode.tile_reader import ReadTile
from embedcache.store.shards.shard import Stored, extremes


class OpenShard:
    """What of one shard is encoded and not yet committed."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.embeddings: dict[int, Stored] = {}
        self.digests: dict[int, str] = {}
        self.skipped: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.identical = 0
        self._begin = time.monotonic()

    def add(self, tile: ReadTile, embedding: Stored) -> Stored | str:
        """Take an embedding in, or note why it cannot be stored: checked after the cast, where it overflows."""
        problem = why_not_stored(embedding)
        if problem is None:
            self.embeddings[tile.number] = embedding
            self.digests[tile.number] = tile.digest
            return embedding
        self.failed[tile.number] = problem
        return problem

    def copy(self, tile: ReadTile, found: Stored | str) -> None:
        """Take in what a tile of equal pixels got: its embedding, or the reason why there is none."""
        if isinstance(found, str):
            self.failed[tile.number] = found
            return
        self.embeddings[tile.number] = found
        self.digests[tile.number] = tile.digest
        self.identical += 1

    def leave_out(self, tile: ReadTile) -> None:
        """Note a tile that is not encoded."""
        if tile.skipped is not None:
            self.skipped[tile.number] = tile.skipped
            self.digests[tile.number] = tile.digest
        if tile.failed is not None:
            self.failed[tile.number] = tile.failed

    def age(self) -> float:
        """Seconds since this part of the shard was begun."""
        return time.monotonic() - self._begin

    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.embeddings or self.skipped or self.failed)


def why_not_stored(embedding: Stored) -> str | None:
    """The reason why an embedding cannot be stored; None when it can."""
    # int8 too: a value that is not finite makes its channel's scale so, and what exceeds float16 has no record
    if np.isfinite(extremes(embedding)).all():  # of all values, at a twentieth of the time
        return None
    return "the embedding holds NaN or exceeds float16"
