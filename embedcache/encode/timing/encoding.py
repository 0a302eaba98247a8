"""Turns a job into what starting its encoder takes, and what a tile costs there: it encodes a few, now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.encode.computing import Computer
from embedcache.encode.numerics import build_encoder, choose_numerics
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.slots import make_slots
from embedcache.encode.stages import Stages
from embedcache.encode.tile_reader import ReadTile
from embedcache.encode.timing.forecast import Cost
from embedcache.encode.timing.stopwatch import Stopwatch
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder
from embedcache.sam.self_test import self_test
from embedcache.store.shards.shard import Stored

ENCODE_SECONDS = 4.0
LEAST_CALLS, MOST_CALLS = 2, 50
"""After so many seconds nothing more is encoded, if these few calls have been made; never more calls than that."""


@dataclass(frozen=True)
class EncodingTimes:
    """What starting the encoder and encoding a few tiles took.

    Parameters
    ----------
    start : float
        Seconds to decide numerics, build, compile, warm up, and prove it.
    fill, encode : Cost
        Of one tile.
    numerics : dict
        Under which it ran, and the run would.
    embedding : Stored
        One of the results.
    """

    start: float
    fill: Cost
    encode: Cost
    numerics: dict[str, Any]
    embedding: Stored


def time_encoding(
    job: EncodeJob, sample: Sequence[ReadTile], tiles_to_do: int, progress: Progress
) -> EncodingTimes:
    """Start the encoder as the run would, and encode a few tiles with it."""
    begin = time.perf_counter()
    recorded = None if job.store is None or job.options.allow_numerics else job.store.numerics
    numerics = choose_numerics(job, recorded, tiles_to_do, progress.say)
    encoder = build_encoder(job, numerics, progress.say)
    start = time.perf_counter() - begin
    stages = Stages()
    computer = Computer(encoder, job.spec.store_dtype, stages)
    slot = make_slots(job.device, encoder.batch, stages)[0]
    batch = [sample[at % len(sample)] for at in range(encoder.batch)]
    fills: list[Cost] = []
    calls: list[Cost] = []
    progress.say("Trying the encoder on a few tiles.")
    begin = time.perf_counter()
    while len(calls) < LEAST_CALLS + 1 or (
        time.perf_counter() - begin < ENCODE_SECONDS and len(calls) < MOST_CALLS
    ):
        watch, before = Stopwatch(), _encoding(stages)
        slot.fill(batch)
        fills.append(watch.read())
        watch = Stopwatch()
        stored = computer.begin(slot.rows(len(batch)))()
        cpu = watch.read().cpu if job.device.type == "cpu" else 0.0  # waiting for a GPU is no work
        calls.append(Cost(_encoding(stages) - before, cpu))
        begin = time.perf_counter() if len(calls) == 1 else begin  # the first one may have compiled
    each = 1 / encoder.batch
    encode, fill = mean(calls[1:]) * each, mean(fills[1:]) * each
    warm_up = max(calls[0].wall - mean(calls[1:]).wall, 0.0)
    to_prove = recorded is None or encoder.numerics["compiled"]
    proof = _time_proof(job, encoder, progress) if to_prove else 0.0
    return EncodingTimes(start + warm_up + proof, fill, encode, encoder.numerics, stored[0])


def mean(costs: Sequence[Cost]) -> Cost:
    """The mean of what several calls took."""
    return Cost(statistics.fmean(cost.wall for cost in costs), statistics.fmean(cost.cpu for cost in costs))


def _encoding(stages: Stages) -> float:
    return stages.seconds["encode"] + stages.seconds["quantise"]


def _time_proof(job: EncodeJob, encoder: Encoder, progress: Progress) -> float:
    """Seconds of the self-test that a new store begins with, and each run of a compiled encoder."""
    begin = time.perf_counter()
    self_test(encoder, job.weights, progress.say)
    return time.perf_counter() - begin
