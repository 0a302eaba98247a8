"""Turns what workers staged into commits, and counts them; and what none of them can do into failed tiles."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from embedcache.encode.distributed.backlog import DEATHS, Group
from embedcache.encode.distributed.members import Attempt
from embedcache.encode.distributed.messages import Outcome, Staged
from embedcache.store import EmbeddingStore, StoreWriter
from embedcache.store.shards.staging import StagedShard, remove_staged


class Publisher:
    """The one that changes the store.

    Parameters
    ----------
    store, writer
        The store and its writer, which holds all of it.
    outcome : Outcome
        Where it is counted.
    """

    def __init__(self, store: EmbeddingStore, writer: StoreWriter, outcome: Outcome) -> None:
        self._store, self._writer, self._outcome = store, writer, outcome
        self._numerics: dict[str, Any] | None = None

    def publish(self, staged: Staged, attempt: Attempt) -> None:
        """Commit a shard that an attempt has staged, unless that was done."""
        if staged.place in attempt.places:
            return
        attempt.places.add(staged.place)
        begin = time.perf_counter()
        if staged.numerics != self._numerics:  # a worker that runs out of memory goes on with smaller batches
            self._numerics = self._writer.decide_numerics(staged.numerics, allow=True)
        shard = StagedShard.from_dict(staged.shard, self._store.shard_tiles)
        if not self._writer.publish_shard(shard):
            return  # its tiles are not done, and so given out again
        attempt.done.update(staged.numbers)
        self._outcome.encoded += len(staged.encoded)
        self._outcome.bytes_written += shard.bytes_written
        self._outcome.failed.update(staged.failed)
        self._outcome.spend("write", time.perf_counter() - begin)

    def forget(self, numbers: Iterable[int], attempt: int) -> None:
        """Remove what an attempt staged of some tiles and does not count."""
        for shard in {number // self._store.shard_tiles for number in numbers}:
            remove_staged(self._store.path, shard, attempt)

    def give_up(self, group: Group, host: str) -> str:
        """Record tiles as failed that killed their workers; returns what is to be said of it."""
        reason = f"given up: {DEATHS} workers died while they encoded it, the last on {host}"
        by_shard: dict[int, dict[int, str]] = {}
        for number in group.numbers:
            by_shard.setdefault(number // self._store.shard_tiles, {})[number] = reason
        for shard, failed in by_shard.items():
            self._writer.commit_shard(shard, embeddings={}, input_digests={}, failed=failed)
            self._outcome.failed.update(failed)
        return f"Shard {', '.join(map(str, by_shard))}: {reason}. The run goes on without it."
