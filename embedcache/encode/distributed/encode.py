"""Turns a job and its plan into committed shards by the workers that the options ask for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from distributed import Client

from embedcache.encode.distributed.backlog import Backlog, Group
from embedcache.encode.distributed.calls import POLL_SECONDS
from embedcache.encode.distributed.cluster import connected
from embedcache.encode.distributed.coordinator import Coordinator
from embedcache.encode.distributed.messages import Briefing, Refused
from embedcache.encode.distributed.roster import WAITING_SECONDS
from embedcache.encode.distributed.worker import resolve_there
from embedcache.encode.options import EncodeOptions
from embedcache.encode.overlapped import Stop
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.reading import task_groups
from embedcache.encode.run import EncodeRun
from embedcache.errors import Interrupted
from embedcache.progress import Progress
from embedcache.sam.search import candidates
from embedcache.sam.weights import MODELS
from embedcache.store import EmbeddingStore, StoreWriter
from embedcache.volume.layouts import absolute_source


def encode_by_workers(
    job: EncodeJob, plan: EncodePlan, store: EmbeddingStore, writer: StoreWriter, run: EncodeRun
) -> None:
    """Encode and commit every missing tile; without one, no worker is started. The run counts what was done.

    Raises
    ------
    InputError
        When there are not the workers that were asked for, or none that can do it.
    EmbedcacheError
        As a run of one process; what a worker met names its host.
    """
    if not plan.missing.any():
        return
    run.progress.start(f"encoding with {job.options.model}", int(plan.missing.sum()))
    try:
        with connected(job.options, job.device) as client:
            briefing = brief(job, plan, store)
            workers = max(1, len(client.nthreads()))
            coordinator = Coordinator(client, briefing, store, writer, run.progress, run.stop)
            groups = _groups(job, plan, briefing.options.read_memory, workers)
            outcome = coordinator.encode(Backlog(groups, briefing.tiles))
    finally:
        run.progress.finish()
    run.take_in(
        encoded=outcome.encoded,
        identical=outcome.identical,
        encoder_calls=outcome.encoder_calls,
        bytes_written=outcome.bytes_written,
        failed=outcome.failed,
        source_chunks_read=outcome.source_chunks_read,
        source_bytes_read=outcome.source_bytes_read,
    )
    run.workers = outcome.workers if job.options.scheduler else job.options.workers
    run.device_name = outcome.device
    run.stages.merge(outcome.seconds, outcome.waits)


def resolved_by_workers(options: EncodeOptions, progress: Progress, stop: Stop) -> EncodeOptions:
    """Options whose precision is that of a scheduler's workers: it is part of what a store is.

    Raises
    ------
    InputError
        When no scheduler answers, or its worker has no such device.
    Interrupted
        While no worker is there.
    """
    with connected(options, torch.device("cpu")) as client:
        if options.precision != "auto":
            return options  # and now it is known that the scheduler is there
        await_worker(client, progress, stop)
        found = client.submit(resolve_there, options.device, options.precision, pure=False).result()
    if isinstance(found, Refused):
        raise found.error
    return replace(options, precision=found)


def await_worker(client: Client, progress: Progress, stop: Stop) -> None:
    """Wait until a worker is there, however long a queue lets it wait; say so."""
    said = time.monotonic() - WAITING_SECONDS
    while not client.nthreads():
        number = stop()
        if number:
            raise Interrupted("No worker was there; nothing was done.", signal_number=number)
        if time.monotonic() - said >= WAITING_SECONDS:
            said = time.monotonic()
            progress.say("No worker is there; waiting for one.")
        time.sleep(POLL_SECONDS)


def _groups(job: EncodeJob, plan: EncodePlan, memory_bytes: int, workers: int) -> Iterator[Group]:
    """The missing tiles in groups of whole shards that share source chunks."""
    for group in task_groups(
        job.volume,
        job.preprocess,
        job.table,
        plan.missing,
        plan.shard_tiles,
        memory_bytes=memory_bytes,
        workers=workers,
    ):
        yield Group(group.tiles)


def brief(job: EncodeJob, plan: EncodePlan, store: EmbeddingStore) -> Briefing:
    """What the workers of a job are told first."""
    options = job.options
    return Briefing(
        topic=f"embedcache-{secrets.token_hex(8)}",
        options=replace(
            options,
            volume=absolute_source(options.volume),
            workers=1,
            scheduler=None,
            precision=job.spec.precision,
            read_memory=options.read_memory // options.workers,  # of a scheduler's workers each has all of it
        ),
        store=str(store.path),
        fingerprint=store.fingerprint,
        checkpoint=_checkpoint(job),
        threads=options.threads or _threads(job, store),
        tiles=int(plan.missing.sum()),
        local=options.scheduler is None,
    )


def _threads(job: EncodeJob, store: EmbeddingStore) -> int | None:
    """Threads of an encoder where they change bits: those of one process, however many there are."""
    if job.device.type != "cpu" or job.precision != "fp32" or store.numerics is not None:
        return None
    return torch.get_num_threads()


def _checkpoint(job: EncodeJob) -> str:
    """Where workers find the weights: the file, where there is one, so that none of them searches or downloads."""
    published = MODELS.get(job.weights.source)
    if published is None:
        return job.weights.source
    return str(next((path for path in candidates(published) if path.is_file()), job.weights.source))
