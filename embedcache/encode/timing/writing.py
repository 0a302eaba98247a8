"""Turns a job into what making its store and committing takes: a store beside it, removed again."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.encode.prepare import EncodeJob
from embedcache.encode.timing.forecast import Cost
from embedcache.encode.timing.stopwatch import Stopwatch
from embedcache.errors import StorageError
from embedcache.files import free_bytes
from embedcache.store import EmbeddingStore
from embedcache.store.shards.shard import Stored

COMMITTED = 32
"""Most embeddings in the commit that is timed."""


@dataclass(frozen=True)
class WritingTimes:
    """What making a store and committing a few embeddings took.

    Parameters
    ----------
    create : float
        Seconds to make the store.
    commit : Cost
        Of one embedding, as part of a shard; durable.
    on_its_disk : bool
        Whether that was on the disk of the store.
    """

    create: float
    commit: Cost
    on_its_disk: bool


def time_writing(job: EncodeJob, embedding: Stored, tiles: int) -> WritingTimes:
    """Make a store beside the real one's place, commit a few embeddings, and remove it.

    Raises
    ------
    StorageError
        When neither that disk nor the one of temporary files can be written.
    """
    for folder, its_own in ((_nearest(job.store_path), True), (None, False)):
        try:
            with tempfile.TemporaryDirectory(prefix=".embedcache-plan-", dir=folder) as place:
                create, commit = _commit_into(Path(place) / "store.zarr", job, embedding, tiles)
                return WritingTimes(create, commit, its_own)
        except (OSError, StorageError) as error:
            refusal = error
    raise StorageError(f"No disk to time the writing on: {refusal}.")


def _commit_into(path: Path, job: EncodeJob, embedding: Stored, tiles: int) -> tuple[float, Cost]:
    begin = time.perf_counter()
    store = EmbeddingStore.create(
        path,
        spec=job.spec,
        table=job.base_table,
        decoder_state=job.weights.decoder_state(),
        provenance=job.provenance(),
        images=job.images,
        shard_tiles=job.options.shard_tiles,
    )
    with store.writer() as writer:
        create = time.perf_counter() - begin
        room = free_bytes(path) // (4 << 20)
        shard, numbers = _fullest_shard(store.table, store.shard_tiles)
        numbers = numbers[: max(1, min(tiles, COMMITTED, room))]
        watch = Stopwatch()
        writer.commit_shard(
            shard,
            embeddings=dict.fromkeys(numbers, embedding),
            input_digests={number: f"{number:064x}" for number in numbers},
        )
        return create, watch.read() * (1 / len(numbers))


def _fullest_shard(table: npt.NDArray[np.int64], shard_tiles: int) -> tuple[int, list[int]]:
    """The shard with the most tiles, and their numbers; some numbers have no tile."""
    numbers = np.flatnonzero(table[:, 0] >= 0)
    shards = numbers // shard_tiles
    fullest = int(np.bincount(shards).argmax())
    return fullest, numbers[shards == fullest].tolist()


def _nearest(path: Path) -> Path:
    """The folder that exists and is, or will hold, a path's parent."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
