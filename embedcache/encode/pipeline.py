"""Turns missing tiles into committed shards: read ahead, encode, check, commit; and says what it did.

The unit of commit is the shard. What is committed stays, whatever happens next: an interruption, a full disk or
a kill costs at most the tiles encoded since the last commit, and the same command goes on from there. The final
bytes do not depend on how often a run was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.encode.check_pixels import check_pixels
from embedcache.encode.open_shard import OpenShard
from embedcache.encode.options import EncodeOptions, options_from
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob, device_name, prepare
from embedcache.encode.result import EncodeResult, Stages
from embedcache.encode.tile_reader import ReadTile, read_ahead
from embedcache.errors import Interrupted, VolumeError
from embedcache.files import free_bytes
from embedcache.geometry import Tile
from embedcache.progress import Progress, Silent
from embedcache.sam.encoder import Encoder
from embedcache.store import EmbeddingStore, StoreWriter

COMMIT_SECONDS = 300.0
"""A shard that takes longer is committed in part, and completed later byte for byte the same."""

Stop = Callable[[], int | None]
"""Asked between batches: the number of the signal that wants the run to end, or None."""


def encode(
    volume: str | Path, *, like: object = None, progress: Progress | None = None, **wishes: Any
) -> EmbeddingStore:
    """Run SAM's image encoder once over a volume; returns at once when every embedding is there.

    Parameters
    ----------
    volume : path
        OME-Zarr, Zarr array, folder of TIFF, PNG or JPEG, one image, ``.npy``, ``file.h5:dataset`` or NIfTI.
    like : store, checkpoint or path of one, optional
        Take every option of the recipe from there, so that both lie in one embedding space.
    progress : Progress, optional
        Where to report to; silent by default.
    **wishes
        The fields of :class:`EncodeOptions`: ``store``, ``model``, ``checkpoint``, ``tile``, ``z_range`` …

    Returns
    -------
    EmbeddingStore
        The store; ``store[i]`` is one (256, 64, 64) float32 embedding.

    Raises
    ------
    InputError, MismatchError, LockedError, StorageError
        As the command's exit codes 2, 3, 5 and 6.
    VolumeError
        When tiles failed; the others are stored. (The command exits with 7 instead.)
    """
    result = run_encode(options_from(volume, wishes, like), progress or Silent())
    if result.failed:
        number, reason = next(iter(result.failed.items()))
        raise VolumeError(
            f"{len(result.failed)} tile(s) could not be encoded, the first is {number}: {reason}.",
            hint=f"The other tiles are stored in {result.store.path}.",
        )
    return result.store


def run_encode(options: EncodeOptions, progress: Progress, stop: Stop = lambda: None) -> EncodeResult:
    """Do one ``encode`` as the options say; see :func:`encode` for the short form."""
    begin = time.perf_counter()
    stages = Stages()
    with stages.measure("prepare"):
        job = prepare(options, progress)
        plan = job.plan()
        plan.require_space(free_bytes(job.store_path), str(job.store_path))
    checked = check_pixels(job, plan, progress)
    store = job.store
    run = _Run(job, stages, progress, stop)
    if store is None or not _nothing_new(store, job, plan):
        store = store or EmbeddingStore.create(
            job.store_path,
            spec=job.spec,
            table=job.table,
            decoder_state=job.weights.decoder_state(),
            provenance=job.provenance(),
            images=job.images,
            shard_tiles=job.options.shard_tiles,
        )
        with store.writer() as writer:
            if len(job.table) > len(store.table):
                writer.add_images(job.images[len(store.images) :], job.table)
            writer.add_selection(job.selection.to_dict(), plan.selected)
            plan = job.plan_for(store, plan.selected)  # another run may have added tiles since the first look
            if plan.missing.any():
                run.encode_missing(plan, store, writer)
        store.refresh()
    return run.result(store, plan, checked, time.perf_counter() - begin)


def _nothing_new(store: EmbeddingStore, job: EncodeJob, plan: EncodePlan) -> bool:
    known = len(store.table)
    all_known = len(job.table) == known
    return all_known and not plan.missing.any() and bool(np.all(store.wanted[plan.selected]))


class _Run:
    """The state of one run between its first tile and its result."""

    def __init__(self, job: EncodeJob, stages: Stages, progress: Progress, stop: Stop) -> None:
        self._job, self._stages = job, stages
        self._progress, self._stop = progress, stop
        self._encoded = self._bytes = self._calls = 0
        self._failed: dict[int, str] = {}

    def encode_missing(self, plan: EncodePlan, store: EmbeddingStore, writer: StoreWriter) -> None:
        """Encode and commit every missing tile, shard by shard."""
        options = self._job.options
        with self._stages.measure("prepare"):
            encoder = self._encoder(store.numerics, writer)
        todo = list(plan.shards())
        numbers = [number for _, members in todo for number in members]
        tiles = ((number, Tile(*map(int, self._job.table[number]))) for number in numbers)
        stream = read_ahead(
            self._job.volume,
            self._job.preprocess,
            tiles,
            skip_empty=options.skips_empty,
            ahead=2 * encoder.batch + 2,
        )
        self._progress.start(f"encoding with {options.model}", len(numbers))
        try:
            for shard, members in todo:
                self._encode_shard(writer, encoder, shard, len(members), stream)
        finally:
            stream.close()  # type: ignore[attr-defined]
            self._calls = encoder.calls
            self._progress.finish()

    def _encoder(self, known: dict[str, Any] | None, writer: StoreWriter) -> Encoder:
        """The encoder, under the numerics of the store's first commit when there was one."""
        options = self._job.options
        asked: dict[str, Any] | None = None if options.batch_size is None else {"batch": options.batch_size}
        if known is not None and not options.allow_numerics:
            asked = dict(known)
        encoder = Encoder(
            self._job.weights, device=self._job.device, precision=self._job.precision, numerics=asked
        )
        writer.decide_numerics(encoder.numerics, allow=options.allow_numerics)
        return encoder

    def _encode_shard(
        self, writer: StoreWriter, encoder: Encoder, shard: int, members: int, stream: Iterator[ReadTile]
    ) -> None:
        pending = OpenShard(shard)
        batch: list[ReadTile] = []
        for left in range(members - 1, -1, -1):
            tile = next(stream)
            self._stages.seconds["read"] += tile.read_seconds
            self._stages.seconds["preprocess"] += tile.preprocess_seconds
            if tile.input is not None:
                batch.append(tile)
            else:
                pending.leave_out(tile)
                self._progress.advance()
            if batch and (len(batch) == encoder.batch or left == 0):
                self._encode_batch(encoder, batch, pending)
                batch = []
            signal_number = self._stop() if left else None
            if not batch and left and (signal_number or pending.age() > COMMIT_SECONDS):
                self._commit(writer, pending)
                pending = OpenShard(shard)
            if signal_number and not batch:
                raise self._interrupted(signal_number)
        self._commit(writer, pending)
        if signal_number := self._stop():
            raise self._interrupted(signal_number)

    def _encode_batch(self, encoder: Encoder, batch: list[ReadTile], pending: OpenShard) -> None:
        with self._stages.measure("encode"):
            inputs = torch.from_numpy(np.stack([tile.input for tile in batch if tile.input is not None]))
            embeddings = encoder(inputs).to(torch.float16).numpy()
        for tile, embedding in zip(batch, embeddings, strict=True):
            pending.add(tile, embedding)
        self._progress.advance(len(batch))

    def _commit(self, writer: StoreWriter, pending: OpenShard) -> None:
        if pending.is_empty():
            return
        with self._stages.measure("write"):
            self._bytes += writer.commit_shard(
                pending.shard,
                embeddings=pending.embeddings,
                input_digests=pending.digests,
                skipped=pending.skipped,
                failed=pending.failed,
                seconds={"shard": round(pending.age(), 3)},
            )
        self._encoded += len(pending.embeddings)
        self._failed.update(pending.failed)

    def _interrupted(self, signal_number: int) -> Interrupted:
        return Interrupted(
            f"Interrupted; {self._encoded} tiles of this run are committed in {self._job.store_path}.",
            signal_number=signal_number,
            hint="Run the same command again; it goes on from there.",
        )

    def result(self, store: EmbeddingStore, plan: EncodePlan, checked: int, seconds: float) -> EncodeResult:
        """What the run did, from the store's fresh snapshot."""
        there = plan.selected & ~plan.missing
        return EncodeResult(
            store=store,
            selected=int(plan.selected.sum()),
            encoded=self._encoded,
            reused=int((store.committed & there).sum()),
            skipped=int((store.skipped & plan.selected).sum()),
            failed=self._failed,
            encoder_calls=self._calls,
            checked_pixels=checked,
            seconds=seconds,
            seconds_by_stage={stage: round(value, 4) for stage, value in self._stages.seconds.items()},
            bytes_written=self._bytes,
            device=device_name(self._job.device),
            precision=self._job.spec.precision,
        )
