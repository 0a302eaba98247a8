"""Turns encoded, skipped and failed tiles into what one commit of a shard takes."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from embedcache.encode.tile_reader import ReadTile
from embedcache.store.shard import extremes


class OpenShard:
    """What of one shard is encoded and not yet committed."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.embeddings: dict[int, npt.NDArray[np.float16]] = {}
        self.digests: dict[int, str] = {}
        self.skipped: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self._begin = time.monotonic()

    def add(self, tile: ReadTile, embedding: npt.NDArray[np.float16]) -> None:
        """Take an embedding in, or note why it cannot be stored: checked after the cast, where it overflows."""
        if np.isfinite(extremes(embedding)).all():  # of all values, at a twentieth of the time
            self.embeddings[tile.number] = embedding
            self.digests[tile.number] = tile.digest
        else:
            self.failed[tile.number] = "the embedding holds NaN or exceeds float16"

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
