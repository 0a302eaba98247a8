"""Turns a prepared job into an ``Estimate``: what encoding would take, from a few tiles encoded here and now."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.encode.options import EncodeOptions
from embedcache.encode.parts import Part
from embedcache.encode.plan import EncodePlan, plan_encode
from embedcache.encode.prepare import prepare
from embedcache.encode.provenance import device_name
from embedcache.encode.survey import selected_views, survey
from embedcache.encode.timing.forecast import break_even
from embedcache.encode.timing.run import time_run
from embedcache.files import free_bytes
from embedcache.geometry import VIEW_SETS
from embedcache.progress import Progress
from embedcache.sam.encoder import resolve_device, resolve_precision
from embedcache.sam.registry import MODELS
from embedcache.sam.search import candidates
from embedcache.store.views import Numbering, grown, planes_of, table_of


@dataclass(frozen=True)
class Estimate:
    """What one ``encode`` would take.

    Parameters
    ----------
    store : str or None
        Where the store is or would be; None without weights at hand, which its name depends on.
    tiles_total, tiles_selected, tiles_missing, files : int
        Tiles of the volume, asked for, not there yet; files that hold the selected ones.
    bytes, bytes_free : int
        Bytes of the missing embeddings, and free on that disk.
    fits : bool
        Whether the disk is large enough.
    device, precision : str
        Where and how the encoder would run.
    store_dtype : str
        How the embeddings would be stored.
    views : int
        Views in which each selected place is asked for.
    num_parts, workers : int
        Processes that would share the work: each by a command of its own, or all started by one.
    tiles_of_part : int
        Missing tiles of the part that was named, else of the largest part; the estimated seconds are that part's.
    seconds_estimated, seconds_start : float or None
        In all; and of it start-up, the first read and the last commit. None where the time is not known.
    seconds_per_tile, tiles_per_second : float or None
        In between.
    seconds_by_stage : dict of str to float
        Of one tile, by each stage if it had the machine to itself.
    bottleneck : str or None
        The stage that sets the pace.
    break_even_epochs : float or None
        Epochs after which encoding once is cheaper than an encoder in the training loop.
    numerics : dict
        What the run would compute under: the attention, whether compiled, the batch.
    source_chunks, source_chunks_read : int
        Chunks of the source that hold missing tiles, and how often they are decoded in all.
    reading : str or None
        The same in words.
    write_bytes_per_second : float or None
        Durable, on the store's disk.
    share_encoded : float
        Of the tiles that were read here: neither empty nor equal to another.
    unknown : str or None
        Why the time is not known.
    """

    store: str | None
    tiles_total: int
    tiles_selected: int
    tiles_missing: int
    files: int
    bytes: int
    bytes_free: int
    fits: bool
    device: str
    precision: str
    store_dtype: str
    num_parts: int
    workers: int
    tiles_of_part: int
    seconds_estimated: float | None = None
    seconds_start: float | None = None
    seconds_per_tile: float | None = None
    tiles_per_second: float | None = None
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    bottleneck: str | None = None
    break_even_epochs: float | None = None
    numerics: dict[str, Any] = field(default_factory=dict)
    source_chunks: int = 0
    source_chunks_read: int = 0
    reading: str | None = None
    write_bytes_per_second: float | None = None
    share_encoded: float = 1.0
    unknown: str | None = None
    views: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache plan --json``."""
        return asdict(self)


def estimate(options: EncodeOptions, progress: Progress) -> Estimate:
    """Time the pieces of the run on a few tiles and reckon; write nothing that stays, and download nothing."""
    missing_weights = _why_no_weights(options)
    if missing_weights is not None:
        return _without_weights(options, missing_weights, progress)
    begin = time.perf_counter()
    job = prepare(options, progress)
    plan = job.plan()
    prepared = time.perf_counter() - begin
    counted = _count(plan, options, job.store_path, str(job.store_path), job.device, job.spec.precision)
    missing = _missing_of_part(plan, options)
    if not missing.any():
        return replace(counted, seconds_estimated=prepared, seconds_start=prepared)
    if options.scheduler is not None:
        return replace(counted, unknown="the scheduler's workers are not timed from here")
    timed = time_run(job, plan, missing, prepared, progress)
    if isinstance(timed, str):
        return replace(counted, unknown=timed)
    found = timed.forecast
    return replace(
        counted,
        seconds_estimated=found.seconds,
        seconds_start=found.start,
        seconds_per_tile=found.per_tile,
        tiles_per_second=1 / found.per_tile,
        seconds_by_stage=found.by_stage,
        bottleneck=found.bottleneck,
        break_even_epochs=break_even(found, counted.tiles_of_part),
        numerics=timed.numerics,
        source_chunks=timed.chunks.distinct,
        source_chunks_read=timed.chunks.planned,
        reading=timed.chunks.in_words(),
        write_bytes_per_second=plan.bytes_per_tile / timed.costs.write.wall,
        share_encoded=timed.encoded,
    )


def _count(
    plan: EncodePlan,
    options: EncodeOptions,
    place: Path,
    store: str | None,
    device: torch.device,
    precision: str,
) -> Estimate:
    """What needs no encoder: tiles, files and bytes."""
    free = free_bytes(place)
    return Estimate(
        store=store,
        tiles_total=plan.total,
        tiles_selected=int(plan.selected.sum()),
        tiles_missing=int(plan.missing.sum()),
        files=plan.files,
        bytes=plan.bytes_needed,
        bytes_free=free,
        fits=plan.bytes_to_be_free <= free,
        device=device_name(device),
        precision=precision,
        store_dtype=plan.store_dtype,
        num_parts=options.num_parts or 1,
        workers=options.workers,
        tiles_of_part=int(_missing_of_part(plan, options).sum()),
        views=plan.views,
    )


def _missing_of_part(plan: EncodePlan, options: EncodeOptions) -> npt.NDArray[np.bool_]:
    """Missing tiles of the part that was named, else of the one with the most, (N,) bool."""
    of = options.num_parts or 1
    parts = (
        [Part(number, of) for number in range(of)] if options.part_id is None else [Part(options.part_id, of)]
    )
    missing = [plan.within(part.shards(plan.selected, plan.shard_tiles)).missing for part in parts]
    return max(missing, key=lambda tiles: int(tiles.sum()))


def _why_no_weights(options: EncodeOptions) -> str | None:
    entry = MODELS.get(options.model) if options.checkpoint == "auto" else None
    if entry is None or any(path.is_file() for path in candidates(entry)):
        return None
    return f"the weights of {options.model} are not on this machine; `encode` would download them"


def _without_weights(options: EncodeOptions, why: str, progress: Progress) -> Estimate:
    """What can be told without an encoder: tiles, files and bytes of a store that is not begun."""
    seen = survey(options, progress)
    place, views = Path(options.store or options.cache_dir).absolute(), VIEW_SETS[options.views]
    uniform, segments = seen.volume.uniform, grown((), planes_of(seen.table), views)
    table = table_of(seen.table, segments, uniform=uniform)
    numbering = Numbering(place, table, segments, uniform)
    selected = selected_views(numbering, seen.selection, seen.volume, views)
    plan = plan_encode(
        table, selected, None, options.shard_tiles, store_dtype=options.store_dtype, views=len(views)
    )
    device = resolve_device(options.device)
    counted = _count(
        plan, options, place, options.store, device, resolve_precision(options.precision, device)
    )
    return replace(counted, unknown=why)
