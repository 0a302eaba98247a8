"""Turns a prepared job into the costs of its pieces and the forecast of the run they make."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.reading import ChunkReads, chunk_reads, plan_reading
from embedcache.encode.timing.encoding import time_encoding
from embedcache.encode.timing.forecast import Costs, Forecast, Work, forecast
from embedcache.encode.timing.reading import ReadingTimes, time_reading
from embedcache.encode.timing.writing import WritingTimes, time_writing
from embedcache.progress import Progress


@dataclass(frozen=True)
class TimedRun:
    """What a run will take, and why.

    Parameters
    ----------
    forecast : Forecast
        The whole.
    costs : Costs
        The pieces.
    chunks : ChunkReads
        How often the source is decoded.
    encoded : float
        Share of the tiles that goes through the encoder.
    numerics : dict
        Under which the encoder would run.
    """

    forecast: Forecast
    costs: Costs
    chunks: ChunkReads
    encoded: float
    numerics: dict[str, Any]


def time_run(
    job: EncodeJob, plan: EncodePlan, missing: npt.NDArray[np.bool_], prepared: float, progress: Progress
) -> TimedRun | str:
    """Time the pieces of a run on a few tiles; the reason where that is impossible.

    Parameters
    ----------
    job, plan
        What would be done.
    missing : (N,) bool
        Tiles that this run would encode; at least one.
    prepared : float
        Seconds that opening took.
    progress : Progress
        Where to report to.
    """
    reading = plan_reading(job.volume, job.preprocess, job.table, missing, plan.shard_tiles)
    chunks, tiles = chunk_reads(reading), int(missing.sum())
    read = time_reading(job, reading)
    if not read.sample:
        return "the tiles that were tried are empty or cannot be read"
    encoding = time_encoding(job, read.sample, tiles, progress)
    writing = time_writing(job, encoding.embedding, tiles)
    if not writing.on_its_disk:
        progress.say(f"{job.store_path.parent} cannot be written; another disk was timed.")
    costs = Costs(
        start=prepared
        + encoding.start
        + _other_starts(job, plan, read, writing)
        + _start_workers(job, prepared),
        chunk=read.chunk,
        read=read.tile,
        preprocess=read.preprocess,
        fill=encoding.fill,
        encode=encoding.encode,
        write=writing.commit,
    )
    work = Work(
        tiles=tiles,
        chunks=chunks.planned,
        encoded=read.encoded,
        shard_tiles=plan.shard_tiles,
        first_chunks=read.first_chunks,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        workers=min(job.options.workers, len(reading)),
        ahead=job.device.type == "cuda",
    )
    return TimedRun(forecast(costs, work), costs, chunks, read.encoded, encoding.numerics)


def _other_starts(job: EncodeJob, plan: EncodePlan, read: ReadingTimes, writing: WritingTimes) -> float:
    """Seconds of what comes first beside opening and the encoder: a new store, or its recorded pixels."""
    if job.store is None:
        return writing.create
    recorded = int((plan.selected & ~plan.missing).sum())
    asked = job.options.check_pixels
    looked_at = recorded if asked is None else min(asked, recorded)
    return looked_at * (read.tile.wall + read.chunk.wall * read.first_chunks)


def _start_workers(job: EncodeJob, prepared: float) -> float:
    """Seconds until workers have imported what they need, and opened what the coordinator has opened before."""
    if job.options.workers == 1:
        return 0.0
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import distributed, embedcache"], check=False)
    return time.perf_counter() - begin + prepared
