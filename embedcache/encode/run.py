"""Turns missing tiles into committed shards: an encoder, and the threads around it while they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from embedcache.encode.commit_thread import Commits, Committed, CommitThread
from embedcache.encode.feed import Feed
from embedcache.encode.numerics import build_encoder, choose_numerics, proven
from embedcache.encode.overlapped import Overlapped, Stop
from embedcache.encode.parts import Part
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob, device_name
from embedcache.encode.result import EncodeResult
from embedcache.encode.slots import make_slots
from embedcache.encode.stages import Stages
from embedcache.encode.tile_reader import ReadAhead
from embedcache.encode.twins import Twins
from embedcache.errors import Interrupted, MismatchError
from embedcache.geometry import Tile
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

    Attributes
    ----------
    compared, changed : int
        Recorded tiles whose pixels were read again, and those of them that had changed.
    encoded, identical, bytes_written, encoder_calls : int
        Tiles committed, those of them that were copied, bytes of their shards, images through the encoder.
    failed : dict of int to str
        Tiles that could not be encoded, and why.
    """

    def __init__(
        self,
        job: EncodeJob,
        stages: Stages,
        progress: Progress,
        stop: Stop,
        *,
        encoder: Encoder | None = None,
    ) -> None:
        self.compared = self.changed = 0
        self.encoded = self.identical = self.bytes_written = self.encoder_calls = 0
        self.failed: dict[int, str] = {}
        self._job, self.stages = job, stages
        self.progress, self.stop = progress, stop
        self._ready = encoder

    def encode_missing(self, plan: EncodePlan, store: EmbeddingStore, writer: Commits) -> None:
        """Encode and commit every missing tile; without one, no encoder is made."""
        if not plan.missing.any():
            return
        todo = list(plan.shards())
        numbers = [number for _, members in todo for number in members]
        with self.stages.measure("prepare"):
            encoder = self.encoder(store, writer, len(numbers))
            writing = Lock()
            twins = Twins(store, writing)
        self.progress.start(f"encoding with {self._job.options.model}", len(numbers))
        calls = encoder.calls
        try:
            with CommitThread(writer, writing, self.stages, self._note(twins)) as commits:
                signal_number = self._overlapped(encoder, numbers, store, twins, commits)
        finally:
            self.encoder_calls += encoder.calls - calls
            self.progress.finish()
        if signal_number:
            raise self._interrupted(signal_number)

    def encoder(self, store: EmbeddingStore, writer: Commits, tiles_to_do: int) -> Encoder:
        """The encoder of this run, under the numerics of the store's first commit when there was one."""
        if self._ready is None:
            self._ready = self._decided(store, writer, tiles_to_do)
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
    ) -> None:
        """Add what others did for this run."""
        self.encoded += encoded
        self.identical += identical
        self.encoder_calls += encoder_calls
        self.bytes_written += bytes_written
        self.failed.update(failed)

    def _overlapped(
        self,
        encoder: Encoder,
        numbers: list[int],
        store: EmbeddingStore,
        twins: Twins,
        commits: CommitThread,
    ) -> int | None:
        job, stages = self._job, self.stages
        with (
            ReadAhead(
                job.volume,
                job.preprocess,
                self._tiles(numbers),
                skip_empty=job.options.skips_empty,
                ahead=2 * encoder.batch + 2,
            ) as reader,
            Feed(
                reader,
                twins,
                make_slots(encoder.device, encoder.batch, stages),
                lambda: encoder.batch,
                stages,
            ) as feed,
        ):
            members = Counter(number // store.shard_tiles for number in numbers)
            return Overlapped(
                encoder,
                feed,
                commits,
                twins,
                members,
                store.shard_tiles,
                job.spec.store_dtype,
                stages,
                self.progress,
                self.stop,
            ).run()

    def _tiles(self, numbers: list[int]) -> Iterable[tuple[int, Tile]]:
        return ((number, Tile(*map(int, self._job.table[number]))) for number in numbers)

    def _note(self, twins: Twins) -> Any:
        """What is done with each commit."""

        def note(committed: Committed) -> None:
            part = committed.part
            twins.learn({number: part.digests[number] for number in part.embeddings})
            self.take_in(
                encoded=len(part.embeddings),
                identical=part.identical,
                encoder_calls=0,
                bytes_written=committed.bytes_written,
                failed=part.failed,
            )

        return note

    def _interrupted(self, signal_number: int) -> Interrupted:
        return Interrupted(
            f"Interrupted; {self.encoded} tiles of this run are committed in {self._job.store_path}.",
            signal_number=signal_number,
            hint="Run the same command again; it goes on from there.",
        )

    def _decided(self, store: EmbeddingStore, writer: Commits, tiles_to_do: int) -> Encoder:
        job, say = self._job, self.progress.say
        known = None if job.options.allow_numerics else store.numerics
        encoder = self._build(choose_numerics(job, known, tiles_to_do, say))
        if known is None:
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
            checked_pixels=self.compared,
            seconds=seconds,
            seconds_by_stage={stage: round(value, 4) for stage, value in self.stages.seconds.items()},
            waits={what: round(value, 4) for what, value in self.stages.waits.items()},
            bottleneck=self.stages.bottleneck,
            bytes_written=self.bytes_written,
            device=device_name(self._job.device),
            precision=self._job.spec.precision,
            part=part,
        )
