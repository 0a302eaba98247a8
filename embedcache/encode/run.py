"""Turns missing tiles into committed shards: an encoder, and the threads around it while they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedcache.encode.commit_thread import Commits, Committed
from embedcache.encode.identity.check_pixels import PixelCheck
from embedcache.encode.numerics import build_encoder, choose_numerics, proven
from embedcache.encode.out_of_memory import refused
from embedcache.encode.overlapped import Stop
from embedcache.encode.parts import Part
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.provenance import device_name
from embedcache.encode.reading import plan_reading
from embedcache.encode.result import EncodeResult
from embedcache.encode.stages import Stages
from embedcache.encode.twins import Twins
from embedcache.encode.wiring import encode_overlapped
from embedcache.errors import Interrupted, MismatchError
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder
from embedcache.store import EmbeddingStore


class EncodeRun:
    """What one command does and has done, from its first tile to its result.

    Parameters
    ----------
    job, stages, progress, stop
        What is to be done, where time and progress are noted, whether to stop.
    encoder : Encoder, optional
        One that is there already, under numerics that were decided; else one is built when it is needed.
    twins : Twins, optional
        Those of a run before this one that came to its end, with the same encoder and store: what they know of a
        large store is not gathered again.

    Attributes
    ----------
    twins : Twins or None
        What is known of tiles of equal pixels, once there was something to encode.
    checked : PixelCheck
        Recorded tiles whose pixels were read again.
    changed : int
        Those of them that had changed.
    encoded, identical, bytes_written, encoder_calls : int
        Tiles committed, those of them that were copied, bytes of their shards, images through the encoder.
    failed : dict of int to str
        Tiles that could not be encoded, and why.
    source_chunks_read, source_bytes_read : int
        Pieces of the source that were decoded for them, and their decoded bytes.
    workers : int
        Processes that encoded.
    device_name : str
        Where the encoder ran.
    """

    def __init__(
        self,
        job: EncodeJob,
        stages: Stages,
        progress: Progress,
        stop: Stop,
        *,
        encoder: Encoder | None = None,
        twins: Twins | None = None,
    ) -> None:
        self.checked, self.changed = PixelCheck(), 0
        self.encoded = self.identical = self.bytes_written = self.encoder_calls = 0
        self.source_chunks_read = self.source_bytes_read = 0
        self.failed: dict[int, str] = {}
        self.workers, self.device_name = 1, device_name(job.device)
        self._job, self.stages = job, stages
        self.progress, self.stop = progress, stop
        self._ready, self.twins = encoder, twins

    def encode_missing(self, plan: EncodePlan, store: EmbeddingStore, writer: Commits) -> None:
        """Encode and commit every missing tile; without one, no encoder is made."""
        if not plan.missing.any():
            return
        job, tiles = self._job, int(plan.missing.sum())
        with self.stages.measure("prepare"):
            encoder = self.encoder(store, writer, tiles)
            reading = plan_reading(job.volume, job.preprocess, job.table, plan.missing, plan.shard_tiles)
            twins = self.twins = self.twins or Twins(store)
        self.progress.start(f"encoding with {job.options.model}", tiles)
        calls, reads = encoder.calls, job.volume.reads
        job.volume.expect(reading)
        try:
            with refused(encoder.device):
                signal_number = encode_overlapped(
                    job,
                    encoder,
                    reading,
                    twins,
                    store.shard_tiles,
                    writer,
                    self.stages,
                    self.progress,
                    self.stop,
                    self._note,
                )
        finally:
            job.volume.expect(None)
            self.encoder_calls += encoder.calls - calls
            done = job.volume.reads - reads
            self.source_chunks_read += done.chunks
            self.source_bytes_read += done.bytes
            self.progress.finish()
        if signal_number:
            raise self._interrupted(signal_number)

    def encoder(self, store: EmbeddingStore, writer: Commits, tiles_to_do: int) -> Encoder:
        """The encoder of this run, under the numerics of the store's first commit when there was one."""
        if self._ready is None:
            with refused(self._job.device):
                self._ready = self._decided(store, writer, tiles_to_do)
            self._job.weights.let_go_of_encoder()  # in bfloat16 these would be twice as much again
        return self._ready

    def stop_if_asked(self) -> None:
        """End the run when a signal asked for it.

        Raises
        ------
        Interrupted
            Saying how much is committed.
        """
        signal_number = self.stop()
        if signal_number:
            raise self._interrupted(signal_number)

    def take_in(
        self,
        *,
        encoded: int,
        identical: int,
        encoder_calls: int,
        bytes_written: int,
        failed: Mapping[int, str],
        source_chunks_read: int = 0,
        source_bytes_read: int = 0,
    ) -> None:
        """Add what was done for this run, here or elsewhere."""
        self.encoded += encoded
        self.identical += identical
        self.encoder_calls += encoder_calls
        self.bytes_written += bytes_written
        self.failed.update(failed)
        self.source_chunks_read += source_chunks_read
        self.source_bytes_read += source_bytes_read

    def _note(self, committed: Committed) -> None:
        part = committed.part
        self.take_in(
            encoded=len(part.embeddings),
            identical=part.identical,
            encoder_calls=0,
            bytes_written=committed.bytes_written,
            failed=part.failed,
        )

    def _interrupted(self, signal_number: int) -> Interrupted:
        return Interrupted(
            f"{self.encoded} tiles of this run are committed in {self._job.store_path}.",
            signal_number=signal_number,
            hint="Run the same command again; it goes on from there.",
        )

    def _decided(self, store: EmbeddingStore, writer: Commits, tiles_to_do: int) -> Encoder:
        job, say = self._job, self.progress.say
        known = None if job.options.allow_numerics else store.numerics
        encoder = self._build(choose_numerics(job, known, tiles_to_do, say))
        if (
            known is None or encoder.numerics["compiled"]
        ):  # compilers are this machine's, whoever began the store
            encoder = proven(encoder, job, self._build, say)
        try:
            writer.decide_numerics(encoder.numerics, allow=job.options.allow_numerics)
        except MismatchError:
            recorded = store.numerics
            if known is not None or recorded is None:
                raise
            # Another part was quicker to record its own, so that these are the store's.
            encoder = self._build(recorded)
            writer.decide_numerics(encoder.numerics)
        return encoder

    def _build(self, numerics: Mapping[str, Any] | None) -> Encoder:
        return build_encoder(self._job, numerics, self.progress.say)

    def result(
        self, store: EmbeddingStore, plan: EncodePlan, part: Part | None, seconds: float
    ) -> EncodeResult:
        """What the run did, from the store's fresh snapshot: it may have more tiles than the plan by now."""
        there = plan.selected & ~plan.missing
        committed, skipped = store.committed[: len(there)], store.skipped[: len(there)]
        return EncodeResult(
            store=store,
            selected=int(plan.selected.sum()),
            encoded=self.encoded,
            identical=self.identical,
            changed=self.changed,
            reused=int((committed & there).sum()),
            skipped=int((skipped & plan.selected).sum()),
            failed=self.failed,
            encoder_calls=self.encoder_calls,
            checked_pixels=self.checked.compared,
            recorded_pixels=self.checked.recorded,
            check_seed=self.checked.seed,
            seconds=seconds,
            seconds_by_stage={stage: round(value, 4) for stage, value in self.stages.seconds.items()},
            waits={what: round(value, 4) for what, value in self.stages.waits.items()},
            bottleneck=self.stages.bottleneck,
            bytes_written=self.bytes_written,
            source_chunks_read=self.source_chunks_read,
            source_bytes_read=self.source_bytes_read,
            workers=self.workers,
            device=self.device_name,
            precision=self._job.spec.precision,
            part=part,
        )
