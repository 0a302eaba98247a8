"""Turns a job and its plan into committed shards by the workers that the options ask for."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from embedcache.encode.distributed.backlog import Group
from embedcache.encode.distributed.cluster import connected
from embedcache.encode.distributed.coordinator import Coordinator
from embedcache.encode.distributed.messages import Briefing
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.run import EncodeRun
from embedcache.sam.search import candidates
from embedcache.sam.weights import MODELS
from embedcache.store import EmbeddingStore, StoreWriter


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
            coordinator = Coordinator(client, brief(job, plan, store), store, writer, run.progress, run.stop)
            outcome = coordinator.encode(groups_of(plan))
    finally:
        run.progress.finish()
    run.take_in(
        encoded=outcome.encoded,
        identical=outcome.identical,
        encoder_calls=outcome.encoder_calls,
        bytes_written=outcome.bytes_written,
        failed=outcome.failed,
    )
    run.stages.merge(outcome.seconds, outcome.waits)


def groups_of(plan: EncodePlan) -> Iterator[Group]:
    """The missing tiles, whole shards by whole shards."""
    for _, numbers in plan.shards():
        yield Group(tuple(numbers))


def brief(job: EncodeJob, plan: EncodePlan, store: EmbeddingStore) -> Briefing:
    """What the workers of a job are told first."""
    options = job.options
    return Briefing(
        topic=f"embedcache-{secrets.token_hex(8)}",
        options=replace(
            options,
            volume=str(Path(options.volume).expanduser().absolute()),
            workers=1,
            scheduler=None,
            precision=job.spec.precision,
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
