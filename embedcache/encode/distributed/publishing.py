"""Turns what workers staged into commits, and counts them; and what none of them can do into failed tiles."""

from __future__ import annotations

import time
from typing import Any

from embedcache.encode.distributed.backlog import DEATHS, Group
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

    Attributes
    ----------
    done : set of int
        Tiles that are committed, skipped or failed by now.
    """

    def __init__(self, store: EmbeddingStore, writer: StoreWriter, outcome: Outcome) -> None:
        self.done: set[int] = set()
        self._store, self._writer, self._outcome = store, writer, outcome
        self._numerics: dict[str, Any] | None = None
        self._published: set[tuple[int, int]] = set()

    def publish(self, staged: Staged) -> int:
        """Commit a staged shard, unless that was done; returns how many tiles it brought."""
        mark = staged.attempt, staged.place
        if mark in self._published:
            return 0
        self._published.add(mark)
        begin = time.perf_counter()
        if staged.numerics != self._numerics:  # a worker that runs out of memory goes on with smaller batches
            self._numerics = self._writer.decide_numerics(staged.numerics, allow=True)
        shard = StagedShard.from_dict(staged.shard, self._store.shard_tiles)
        if not self._writer.publish_shard(shard):
            return 0  # its tiles are not done, and so given out again
        numbers = [*staged.encoded, *staged.skipped, *staged.failed]
        self.done.update(numbers)
        self._outcome.encoded += len(staged.encoded)
        self._outcome.bytes_written += shard.bytes_written
        self._outcome.failed.update(staged.failed)
        self._outcome.spend("write", time.perf_counter() - begin)
        return len(numbers)

    def forget(self, groups: tuple[Group, ...], attempt: int) -> None:
        """Remove what an attempt staged that does not count."""
        for shard in {number // self._store.shard_tiles for group in groups for number in group.numbers}:
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
        self.done.update(group.numbers)
        return f"Shard {', '.join(map(str, by_shard))}: {reason}. The run goes on without it."
