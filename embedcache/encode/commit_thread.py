"""Turns finished shards into commits, in a thread of its own, so that encoding can go on.

One shard is written at a time, and none waits: a kill costs at most the shard that is being written and what was
encoded meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Protocol

from embedcache.encode.open_shard import OpenShard
from embedcache.encode.stages import WRITER, Stages
from embedcache.encode.threads import join_surely, started
from embedcache.store.shards.shard import Stored


class Commits(Protocol):
    """What makes embeddings durable: a ``StoreWriter``, or what a worker has in its place."""

    def commit_shard(
        self,
        shard: int,
        *,
        embeddings: Mapping[int, Stored],
        input_digests: Mapping[int, str],
        skipped: Mapping[int, str] | None = None,
        failed: Mapping[int, str] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> int:
        """Make tiles of one shard durable; returns the bytes written."""

    def decide_numerics(self, numerics: Mapping[str, Any], *, allow: bool = False) -> dict[str, Any]:
        """Fix the numerics under which the following commits are made."""


@dataclass(frozen=True)
class Committed:
    """A shard, or a part of one, that is durable now."""

    part: OpenShard
    bytes_written: int


class CommitThread:
    """Commits one shard after the other; used as a context, by one thread.

    Parameters
    ----------
    commits : Commits
        Makes them durable.
    writing : Lock
        Held meanwhile.
    stages : Stages
        Where time is noted.
    on_commit : callable
        Told of each shard, in the thread that hands them over.
    """

    def __init__(
        self, commits: Commits, writing: Lock, stages: Stages, on_commit: Callable[[Committed], None]
    ) -> None:
        self._commits, self._writing, self._stages, self._on_commit = commits, writing, stages, on_commit
        self._todo: SimpleQueue[OpenShard | None] = SimpleQueue()
        self._done: SimpleQueue[Committed | BaseException] = SimpleQueue()
        self._at_work = 0

    def __enter__(self) -> CommitThread:
        self._thread = started(self._work, "embedcache-write")
        return self

    def __exit__(self, *_: object) -> None:
        self._todo.put(None)
        join_surely(self._thread)  # the store's lock is held for this thread's sake
        for committed in self._all_done():
            self._on_commit(committed)

    def hand_over(self, part: OpenShard) -> None:
        """Commit a shard as soon as the one before is durable.

        Raises
        ------
        Exception
            What refused the commit before.
        """
        if part.is_empty():
            return
        with self._stages.waiting(WRITER):
            self.finish()
        self._at_work += 1
        self._todo.put(part)

    def finish(self) -> None:
        """Wait until everything handed over is durable; raises what refused it."""
        if self._at_work:
            self._take(self._done.get())

    def look(self) -> None:
        """Take note of what has become durable, without waiting; raises what refused it."""
        if self._at_work and not self._done.empty():
            self._take(self._done.get())

    def _take(self, found: Committed | BaseException) -> None:
        self._at_work -= 1
        if isinstance(found, BaseException):
            raise found
        self._on_commit(found)

    def _all_done(self) -> Iterator[Committed]:
        while True:
            try:
                found = self._done.get_nowait()
            except Empty:
                return
            if isinstance(found, Committed):  # another error is on its way already
                yield found

    def _work(self) -> None:
        while (part := self._todo.get()) is not None:
            try:
                with self._writing, self._stages.measure("write"):
                    size = self._commits.commit_shard(
                        part.shard,
                        embeddings=part.embeddings,
                        input_digests=part.digests,
                        skipped=part.skipped,
                        failed=part.failed,
                        seconds={"shard": round(part.age(), 3)},
                    )
            except BaseException as error:  # it ends the run where the next shard is handed over
                self._done.put(error)
            else:
                self._done.put(Committed(part, size))
