"""Turns batches into commits: encode, take in, hand over finished shards, and look whether to stop, in one thread.

This is the thread that drives the encoder. Reading and preparing go on in others ahead of it, writing in another
one behind it; each of them may only be so far ahead or behind.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty

from embedcache.encode.commit_thread import CommitThread
from embedcache.encode.computing import Computer, Result
from embedcache.encode.feed import Batch, Feed
from embedcache.encode.open_shard import OpenShard
from embedcache.encode.out_of_memory import too_much, why
from embedcache.encode.stages import INPUT, WRITER, Stages
from embedcache.encode.tile_reader import ReadTile
from embedcache.encode.twins import Fate, Twins
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder, is_out_of_memory

COMMIT_SECONDS = 300.0
"""A shard that takes longer is committed in part, and completed later byte for byte the same."""

GOES_ON: tuple[str, ...] = ("cuda",)
"""Kinds of device whose encoder goes on with the next shard while one is written.

On a CPU it waits: there, writing a shard takes a small part of the time of encoding it, and a kill shall not cost
two of them.
"""

STALL_SECONDS = 30.0
"""How long a tile is awaited before it is said."""

_LOOK_SECONDS = 0.5

Stop = Callable[[], int | None]
"""Asked between batches: the number of the signal that wants the run to end, or None."""


class Overlapped:
    """The encoder's thread of a run.

    Parameters
    ----------
    encoder : Encoder
        At work in this thread only.
    feed, commits, twins
        In their contexts: where batches come from, where shards go, who knows tiles of equal pixels.
    members : dict of int to int
        How many tiles come of each shard; filled in before the first of them comes.
    shard_tiles : int
        Tile numbers in one shard.
    store_dtype : str
        Element type of the stored embeddings.
    stages, progress
        Where time and finished tiles are noted.
    stop : callable
        See :data:`Stop`.
    renumber : callable
        Called when the encoder goes on under other numerics, after all before was committed.
    after_batch : callable
        Called after each one.
    """

    def __init__(
        self,
        encoder: Encoder,
        feed: Feed,
        commits: CommitThread,
        twins: Twins,
        members: dict[int, int],
        shard_tiles: int,
        store_dtype: str,
        stages: Stages,
        progress: Progress,
        stop: Stop,
        renumber: Callable[[], object],
        after_batch: Callable[[], None],
    ) -> None:
        self._encoder, self._feed, self._commits, self._twins = encoder, feed, commits, twins
        self._left, self._shard_tiles = members, shard_tiles
        self._stages, self._progress, self._stop = stages, progress, stop
        self._renumber, self._after_batch = renumber, after_batch
        self._open: dict[int, OpenShard] = {}
        self._at_work: deque[tuple[Batch, Result | None]] = deque()
        self._computer = Computer(encoder, store_dtype, stages)
        self._said, self._begun = -1, False

    def run(self) -> int | None:
        """Encode and commit everything; returns the signal that ended it before, None when all was done."""
        signal_number = None
        while signal_number is None:
            batch, signal_number = self._next()
            if batch is None:
                break
            self._at_work.append((batch, self._begin(batch)))
            self._take_in(self._computer.ahead - 1)
            self._commits.look()
            self._after_batch()
            signal_number = self._stop()
        self._take_in(0)
        for shard in tuple(self._open):
            self._hand_over(shard)
        self._commits.finish()
        return signal_number

    def _next(self) -> tuple[Batch | None, int | None]:
        """The next batch; None after the last one, or when a signal came while it was waited for."""
        # Until the first one comes nothing overlaps; that the encoder waits then does not tell what limits it.
        with self._stages.waiting(INPUT) if self._begun else self._stages.measure("prepare"):
            self._begun = True
            while True:
                try:
                    return self._feed.get(_LOOK_SECONDS), None
                except Empty:
                    self._commits.look()
                    signal_number = self._stop()
                    if signal_number:
                        return None, signal_number
                    self._say_stall()

    def _say_stall(self) -> None:
        awaited = self._feed.awaited
        if awaited is None:
            return
        number, since = awaited
        waited = time.monotonic() - since
        if waited >= STALL_SECONDS and number != self._said:
            self._said = number
            self._progress.say(
                f"The source has not given tile {number} for {waited:.0f} s; still waiting for it."
            )

    def _begin(self, batch: Batch) -> Result | None:
        while batch.to_encode:
            try:
                return self._computer.begin(batch.inputs())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = why(error)
            # out of the handler, whose traceback keeps the memory
            self._halve(reason)
        return None

    def _halve(self, reason: str) -> None:
        """Go on with half the batch, which may give other bits: what was made so far is committed first."""
        self._take_in(0)
        for shard in tuple(self._open):
            self._hand_over(shard)
        self._commits.finish()
        if not self._encoder.halve():
            raise too_much(self._encoder.device, reason)
        self._twins.forget()
        self._renumber()
        self._progress.say(
            f"Memory ran out ({reason}); going on with {self._encoder.batch} images at once. "
            "The journal says which shards were encoded so."
        )

    def _take_in(self, at_work: int) -> None:
        """Take the results of all batches but the last ``at_work`` into their shards."""
        while len(self._at_work) > at_work:
            batch, result = self._at_work.popleft()
            embeddings = iter(result() if result else ())
            if batch.slot is not None:
                self._feed.give_back(batch.slot)
            for one in batch.decided:
                part = self._part(one.tile)
                if one.fate is Fate.ENCODE:
                    self._twins.made(one.tile.digest, part.add(one.tile, next(embeddings)))
                elif one.fate is Fate.WAIT:
                    part.copy(one.tile, self._twins.twin_of(one.tile.digest))
                elif one.fate is None:
                    part.leave_out(one.tile)
                else:
                    part.copy(one.tile, one.fate)
                self._finish(one.tile)
            self._progress.advance(len(batch.decided), self._stages.bottleneck)
            for shard in [shard for shard, part in self._open.items() if part.age() > COMMIT_SECONDS]:
                self._hand_over(shard)

    def _part(self, tile: ReadTile) -> OpenShard:
        shard = tile.number // self._shard_tiles
        if shard not in self._open:
            self._open[shard] = OpenShard(shard)
        return self._open[shard]

    def _finish(self, tile: ReadTile) -> None:
        """Hand a shard over with its last tile."""
        shard = tile.number // self._shard_tiles
        self._left[shard] -= 1
        if not self._left[shard]:
            del self._left[shard]
            self._hand_over(shard)

    def _hand_over(self, shard: int) -> None:
        self._commits.hand_over(self._open.pop(shard))
        if self._encoder.device.type not in GOES_ON:
            with self._stages.waiting(WRITER):
                self._commits.finish()
