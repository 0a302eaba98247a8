"""Turns missing tiles into committed shards, and says what it did.

Everything is opened and planned first; a store that lacks nothing is left alone. What is committed stays, whatever
happens next: an interruption, a full disk or a kill costs at most the tiles encoded since the last commit, and
the same command goes on from there. The final bytes do not depend on how often a run was interrupted, nor on
how many parts did it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from embedcache.encode.identity.changed import take_over_changes
from embedcache.encode.identity.check_pixels import PixelCheck, check_pixels
from embedcache.encode.options import REENCODE, EncodeOptions, options_from
from embedcache.encode.overlapped import Stop
from embedcache.encode.parts import Part, part_of
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob, prepare
from embedcache.encode.result import EncodeResult
from embedcache.encode.run import EncodeRun
from embedcache.encode.stages import Stages
from embedcache.errors import MismatchError, VolumeError
from embedcache.files import free_bytes
from embedcache.progress import Progress, Silent
from embedcache.store import EmbeddingStore, StoreWriter


def encode(
    volume: str | Path, *, like: object = None, progress: Progress | None = None, **wishes: object
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
    part = part_of(options.num_parts, options.part_id)
    with stages.measure("prepare"):
        job = prepare(_resolved(options, progress, stop), progress, stop)
        whole = job.plan()
        at_hand = _bytes_at_hand(job.store_path, job.store, whole)  # for all: parts fill one disk
        whole.require_space(at_hand, str(job.store_path))
    run = EncodeRun(job, stages, progress, stop)
    if options.changed == REENCODE and job.store is not None:
        store, plan = _reencode(job, job.store, whole, run, progress)
    else:
        store, plan = _encode(job, whole, part, run, progress)
    if run.encoded:
        progress.say(stages.in_words())
    return run.result(store, plan, part, time.perf_counter() - begin)


def _resolved(options: EncodeOptions, progress: Progress, stop: Stop) -> EncodeOptions:
    """The options with what only the workers of a scheduler can tell."""
    if options.scheduler is None:
        return options
    from embedcache.encode.distributed.encode import resolved_by_workers

    return resolved_by_workers(options, progress, stop)


def _encode(
    job: EncodeJob, whole: EncodePlan, part: Part | None, run: EncodeRun, progress: Progress
) -> tuple[EmbeddingStore, EncodePlan]:
    """Encode what is missing of the selection, or of the part's share of it."""
    plan = whole if part is None else whole.within(part.shards(whole.selected, whole.shard_tiles))
    complete = job.store is not None and _nothing_new(job.store, job, whole, plan)
    if job.store is not None and not complete:
        own = None if part is None else part.shards(whole.selected, job.store.shard_tiles)
        if own is None or own:
            job.store.require_free(own)  # said before pixels are compared
    run.checked = check_pixels(job, plan, progress)
    if job.store is not None and complete:
        job.store.make_durable()  # its last writer may have been killed before the last fsync
        return job.store, plan
    store = job.store or _create(job)
    shards = None if part is None else part.shards(whole.selected, store.shard_tiles)
    if part is not None and not shards:
        progress.say(f"There are fewer shards than parts; {part} has nothing to do.")
        return store, plan
    with store.writer(shards) as writer:
        job.seen.require(store)
        _add_tiles(job, store, writer)
        writer.add_selection(job.asked, whole.selected)
        plan = job.plan_for(store, whole.selected)  # another run may have added tiles since the first look
        plan = plan if shards is None else plan.within(shards)
        _encode_missing(job, run, plan, store, writer)
    store.refresh()
    return store, plan


def _reencode(
    job: EncodeJob, store: EmbeddingStore, whole: EncodePlan, run: EncodeRun, progress: Progress
) -> tuple[EmbeddingStore, EncodePlan]:
    """Encode the selection and every tile whose pixels changed, wherever it lies; the plan is the selection's."""
    with store.writer() as writer:
        job.seen.require(store, all_images=True)
        found = take_over_changes(job, store, writer, progress, run.stop_if_asked)
        run.checked, run.changed = PixelCheck(found.compared, found.compared), len(found.changed)
        _add_tiles(job, store, writer)  # now the records of those that changed are the store's too
        writer.add_selection(job.asked, whole.selected)
        # What an earlier, killed command marked as changed is missing like anything else that is wanted.
        plan = job.plan_for(store, whole.selected | store.missing)
        at_hand = _bytes_at_hand(store.path, store, plan)
        plan.require_space(at_hand, str(store.path), "The changed tiles are marked as missing.")
        _encode_missing(job, run, plan, store, writer)
    store.refresh()
    return store, replace(plan, selected=whole.selected, missing=plan.missing & whole.selected)


def _encode_missing(
    job: EncodeJob, run: EncodeRun, plan: EncodePlan, store: EmbeddingStore, writer: StoreWriter
) -> None:
    """Encode here, or by the workers that were asked for."""
    if not job.options.by_workers:
        run.encode_missing(plan, store, writer)
        return
    # dask is imported only now: it takes longer to load than a short command to run
    from embedcache.encode.distributed.encode import encode_by_workers

    encode_by_workers(job, plan, store, writer, run)


def _bytes_at_hand(path: Path, store: EmbeddingStore | None, plan: EncodePlan) -> int:
    """Bytes that the missing tiles may take: what is free, and what their shards hold that counts no longer."""
    if store is None:
        return free_bytes(path)
    freed, sizes, committed = 0, store.state.shard_bytes.tolist(), store.committed
    for shard, _ in plan.shards():
        if shard < len(sizes):
            kept = committed[shard * store.shard_tiles : (shard + 1) * store.shard_tiles].sum()
            freed += max(0, sizes[shard] - int(kept) * plan.bytes_per_tile)
    return free_bytes(path) + freed


def _nothing_new(store: EmbeddingStore, job: EncodeJob, whole: EncodePlan, plan: EncodePlan) -> bool:
    all_known = len(job.table) == len(store.table)
    return all_known and not plan.missing.any() and bool(np.all(store.wanted[whole.selected]))


def _create(job: EncodeJob) -> EmbeddingStore:
    """Make the store, or open the one that another part has just made."""
    return EmbeddingStore.create(
        job.store_path,
        spec=job.spec,
        table=job.base_table,
        decoder_state=job.weights.decoder_state(),
        provenance=job.provenance(),
        images=job.images,
        shard_tiles=job.options.shard_tiles,
    )


def _add_tiles(job: EncodeJob, store: EmbeddingStore, writer: StoreWriter) -> None:
    """Add what is new of a collection, then the views; also without news, the tiles must be the store's."""
    with writer.store_wide():  # as one: nobody else's rows may come in between
        if job.images:
            writer.add_images(job.images, job.rows_of_images)
        if job.segments:
            writer.add_views(job.views)
            table = store.table[: len(job.table)]
            if not np.array_equal(table, job.table):
                raise MismatchError(
                    f"{store.path} was given other tiles meanwhile. Nothing was encoded.",
                    hint="Run the same command again; it looks at what is there now.",
                )
