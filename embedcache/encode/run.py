"""Turns missing tiles into committed shards: read ahead, find twins, encode, check, commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from embedcache.encode.open_shard import OpenShard
from embedcache.encode.parts import Part
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob, device_name
from embedcache.encode.result import EncodeResult, Stages
from embedcache.encode.tile_reader import ReadTile, read_ahead
from embedcache.encode.twins import Twins
from embedcache.errors import Interrupted, MismatchError
from embedcache.geometry import Tile
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder
from embedcache.store import EmbeddingStore, StoreWriter
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.shards.shard import Stored

COMMIT_SECONDS = 300.0
"""A shard that takes longer is committed in part, and completed later byte for byte the same."""

Stop = Callable[[], int | None]
"""Asked between batches: the number of the signal that wants the run to end, or None."""


class EncodeRun:
    """What one command does and has done, from its first tile to its result.

    Attributes
    ----------
    compared, changed : int
        Recorded tiles whose pixels were read again, and those of them that had changed.
    """

    def __init__(self, job: EncodeJob, stages: Stages, progress: Progress, stop: Stop) -> None:
        self.compared = self.changed = 0
        self._job, self._stages = job, stages
        self._progress, self._stop = progress, stop
        self._encoded = self._identical = self._bytes = self._calls = 0
        self._failed: dict[int, str] = {}

    def encode_missing(self, plan: EncodePlan, store: EmbeddingStore, writer: StoreWriter) -> None:
        """Encode and commit every missing tile, shard by shard; without one, no encoder is made."""
        if not plan.missing.any():
            return
        options = self._job.options
        with self._stages.measure("prepare"):
            encoder = self._encoder(store, writer)
            twins = Twins(store)
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
                self._encode_shard(writer, encoder, twins, shard, len(members), stream)
        finally:
            stream.close()  # type: ignore[attr-defined]
            self._calls = encoder.calls
            self._progress.finish()

    def stop_if_asked(self) -> None:
        """End the run when a signal asked for it.

        Raises
        ------
        Interrupted
            Saying how much is committed.
        """
        signal_number = self._stop()
        if signal_number:
            raise self._interrupted(signal_number)

    def _interrupted(self, signal_number: int) -> Interrupted:
        return Interrupted(
            f"Interrupted; {self._encoded} tiles of this run are committed in {self._job.store_path}.",
            signal_number=signal_number,
            hint="Run the same command again; it goes on from there.",
        )

    def _encoder(self, store: EmbeddingStore, writer: StoreWriter) -> Encoder:
        """The encoder, under the numerics of the store's first commit when there was one."""
        options = self._job.options
        known = None if options.allow_numerics else store.numerics
        asked: dict[str, Any] | None = None if options.batch_size is None else {"batch": options.batch_size}
        encoder = self._build(known or asked)
        try:
            writer.decide_numerics(encoder.numerics, allow=options.allow_numerics)
        except MismatchError:
            recorded = store.numerics
            if known is not None or recorded is None:
                raise
            # Another part was quicker to record its own, so that these are the store's.
            encoder = self._build(recorded)
            writer.decide_numerics(encoder.numerics)
        return encoder

    def _build(self, numerics: dict[str, Any] | None) -> Encoder:
        job = self._job
        return Encoder(job.weights, device=job.device, precision=job.precision, numerics=numerics)

    def _encode_shard(
        self,
        writer: StoreWriter,
        encoder: Encoder,
        twins: Twins,
        shard: int,
        members: int,
        stream: Iterator[ReadTile],
    ) -> None:
        pending = OpenShard(shard)
        batch: list[ReadTile] = []
        for left in range(members - 1, -1, -1):
            tile = next(stream)
            if self._take(tile, pending, twins):
                batch.append(tile)
            if batch and (len(batch) == encoder.batch or left == 0):
                self._encode_batch(encoder, batch, pending)
                batch = []
            signal_number = self._stop() if left else None
            if not batch and left and (signal_number or pending.age() > COMMIT_SECONDS):
                self._commit(writer, pending, twins)
                pending = OpenShard(shard)
            if signal_number and not batch:
                raise self._interrupted(signal_number)
        self._commit(writer, pending, twins)
        self.stop_if_asked()

    def _take(self, tile: ReadTile, pending: OpenShard, twins: Twins) -> bool:
        """Note a tile as it comes from the reader; whether it is to be encoded."""
        self._stages.seconds["read"] += tile.read_seconds
        self._stages.seconds["preprocess"] += tile.preprocess_seconds
        if tile.input is None:
            pending.leave_out(tile)
        else:
            with self._stages.measure("read"):
                known = twins.find(tile.digest)
            if known is not None:
                pending.copy(tile, known)
            elif pending.begins(tile):
                return True
        self._progress.advance()
        return False

    def _encode_batch(self, encoder: Encoder, batch: list[ReadTile], pending: OpenShard) -> None:
        with self._stages.measure("encode"):
            inputs = torch.from_numpy(np.stack([tile.input for tile in batch if tile.input is not None]))
            embeddings = as_stored(encoder.on_device(inputs), self._job.spec.store_dtype)
        for tile, embedding in zip(batch, embeddings, strict=True):
            pending.add(tile, embedding)
        self._progress.advance(len(batch))

    def _commit(self, writer: StoreWriter, pending: OpenShard, twins: Twins) -> None:
        pending.settle_twins()
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
        twins.learn({number: pending.digests[number] for number in pending.embeddings})
        self._encoded += len(pending.embeddings)
        self._identical += pending.identical
        self._failed.update(pending.failed)

    def result(
        self, store: EmbeddingStore, plan: EncodePlan, part: Part | None, seconds: float
    ) -> EncodeResult:
        """What the run did, from the store's fresh snapshot: it may have more tiles than the plan by now."""
        there = plan.selected & ~plan.missing
        committed, skipped = store.committed[: len(there)], store.skipped[: len(there)]
        return EncodeResult(
            store=store,
            selected=int(plan.selected.sum()),
            encoded=self._encoded,
            identical=self._identical,
            changed=self.changed,
            reused=int((committed & there).sum()),
            skipped=int((skipped & plan.selected).sum()),
            failed=self._failed,
            encoder_calls=self._calls,
            checked_pixels=self.compared,
            seconds=seconds,
            seconds_by_stage={stage: round(value, 4) for stage, value in self._stages.seconds.items()},
            bytes_written=self._bytes,
            device=device_name(self._job.device),
            precision=self._job.spec.precision,
            part=part,
        )


def as_stored(embeddings: torch.Tensor, store_dtype: str) -> list[Stored]:
    """Embeddings in the form that a store keeps: made on their device, so that few bytes cross to the host."""
    if store_dtype == "int8":
        values, scales = (tensor.cpu().numpy() for tensor in quantise(embeddings))
        return [Quantised(value, scale) for value, scale in zip(values, scales, strict=True)]
    return list(embeddings.to(torch.float16).cpu().numpy())
