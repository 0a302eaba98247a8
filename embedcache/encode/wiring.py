"""Turns a job and an encoder into the threads of a run: readers, feed, encoder, writer, and bounded queues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from embedcache.encode.commit_thread import Commits, Committed, CommitThread
from embedcache.encode.feed import Feed
from embedcache.encode.overlapped import Overlapped, Stop
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.slots import make_slots
from embedcache.encode.stages import Stages
from embedcache.encode.tile_reader import ReadAhead
from embedcache.encode.trace import tracing
from embedcache.encode.twins import Twins
from embedcache.geometry import IMAGE_SIZE, Tile
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder

_AHEAD_BYTES = 64 << 20
"""Pixels of tiles that are read and not yet fed to the encoder."""

_AHEAD_TILES = 64
"""So many at most: what a column of 128³ chunks gives at once, as far as it is read ahead."""


def encode_overlapped(
    job: EncodeJob,
    encoder: Encoder,
    reading: Iterable[tuple[int, list[int]]],
    twins: Twins,
    shard_tiles: int,
    writer: Commits,
    stages: Stages,
    progress: Progress,
    stop: Stop,
    on_commit: Callable[[Committed], None],
) -> int | None:
    """Encode and commit the tiles of each shard in the order given; all threads have ended on return.

    Returns
    -------
    int or None
        The signal that ended the run before everything was done.
    """
    members = dict[int, int]()

    def note(committed: Committed) -> None:
        part = committed.part
        twins.learn({number: part.digests[number] for number in part.embeddings})
        on_commit(committed)

    with (
        CommitThread(writer, twins.writing, stages, note) as commits,
        _reader(job, encoder, reading, members, stages) as reader,
    ):
        slots = make_slots(encoder.device, encoder.batch, stages)
        with (
            Feed(reader, twins, slots, lambda: encoder.batch, stages) as feed,
            tracing(job.options.profile, stages, progress.say) as after_batch,
        ):
            return Overlapped(
                encoder,
                feed,
                commits,
                twins,
                members,
                shard_tiles,
                job.spec.store_dtype,
                stages,
                progress,
                stop,
                lambda: writer.decide_numerics(encoder.numerics, allow=True),
                after_batch,
            ).run()


def _reader(
    job: EncodeJob,
    encoder: Encoder,
    reading: Iterable[tuple[int, list[int]]],
    members: dict[int, int],
    stages: Stages,
) -> ReadAhead:
    return ReadAhead(
        job.volume,
        job.preprocess,
        _tiles(job, reading, members),
        empty=job.empty,
        ahead=max(2 * encoder.batch + 2, min(_AHEAD_TILES, _AHEAD_BYTES // _tile_bytes(job))),
        stages=stages,
    )


def _tiles(
    job: EncodeJob, reading: Iterable[tuple[int, list[int]]], members: dict[int, int]
) -> Iterator[tuple[int, Tile]]:
    """Each tile in the order of reading; how many a shard has is noted before its first one."""
    for shard, numbers in reading:
        members[shard] = len(numbers)
        for number in numbers:
            yield number, Tile(*map(int, job.table[number]))


def _tile_bytes(job: EncodeJob) -> int:
    """Bytes of a tile's scaled pixels at most."""
    small = job.volume.dtype in (np.uint8, np.uint16)
    channels = 1 if job.preprocess.channels == "repeat" else 3
    return channels * IMAGE_SIZE**2 * (job.volume.dtype.itemsize if small else 4)
