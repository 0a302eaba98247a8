"""Turns a prepared job into an ``Estimate``: what encoding would take, from a few tiles encoded here and now."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.encode.options import EncodeOptions
from embedcache.encode.parts import Part
from embedcache.encode.plan import EncodePlan, plan_encode
from embedcache.encode.prepare import EncodeJob, device_name, prepare
from embedcache.encode.survey import selected_tiles, survey
from embedcache.encode.tile_reader import read_tile
from embedcache.files import free_bytes, write_file
from embedcache.geometry import Tile
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder, resolve_device, resolve_precision
from embedcache.sam.registry import MODELS
from embedcache.sam.search import candidates

TIMED_BATCHES = 2


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
    seconds_per_tile, seconds_estimated : float or None
        From a few tiles timed on this machine; None without weights at hand.
    break_even_epochs : float or None
        Epochs after which encoding once is cheaper than an encoder in the training loop.
    fits : bool
        Whether the disk is large enough.
    device, precision : str
        Where and how the encoder would run.
    store_dtype : str
        How the embeddings would be stored.
    num_parts : int
        Processes that would share the work.
    tiles_of_part : int
        Missing tiles of the part that was named, else of the largest part; the estimated seconds are that part's.
    unknown : str or None
        Why the hours are not known.
    """

    store: str | None
    tiles_total: int
    tiles_selected: int
    tiles_missing: int
    files: int
    bytes: int
    bytes_free: int
    seconds_per_tile: float | None
    seconds_estimated: float | None
    break_even_epochs: float | None
    fits: bool
    device: str
    precision: str
    store_dtype: str
    num_parts: int
    tiles_of_part: int
    unknown: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache plan --json``."""
        return asdict(self)


def estimate(options: EncodeOptions, progress: Progress) -> Estimate:
    """Time a few tiles and multiply; write nothing that stays, and download nothing."""
    missing_weights = _why_no_weights(options)
    if missing_weights is not None:
        return _without_weights(options, missing_weights, progress)
    job = prepare(options, progress)
    plan = job.plan()
    counted = _count(plan, options, job.store_path, str(job.store_path), job.device, job.spec.precision)
    read, encode = _time_tiles(job, plan, progress)
    write = _time_writing(plan.bytes_per_tile)
    per_tile = max(encode, read) + write  # reading runs beside encoding
    # An epoch with the encoder inside costs reading and encoding again; from the cache it costs reading it back.
    saved = max(read + encode - write, 1e-9)
    return replace(
        counted,
        seconds_per_tile=per_tile,
        seconds_estimated=per_tile * counted.tiles_of_part,
        break_even_epochs=(read + encode + write) / saved,
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
        seconds_per_tile=None,
        seconds_estimated=None,
        break_even_epochs=None,
        fits=plan.bytes_to_be_free <= free,
        device=device_name(device),
        precision=precision,
        store_dtype=plan.store_dtype,
        num_parts=options.num_parts or 1,
        tiles_of_part=_tiles_of_part(plan, options),
    )


def _tiles_of_part(plan: EncodePlan, options: EncodeOptions) -> int:
    of = options.num_parts or 1
    parts = (
        [Part(number, of) for number in range(of)] if options.part_id is None else [Part(options.part_id, of)]
    )
    return max(int(plan.within(part.shards(plan.selected, plan.shard_tiles)).missing.sum()) for part in parts)


def _why_no_weights(options: EncodeOptions) -> str | None:
    entry = MODELS.get(options.model) if options.checkpoint == "auto" else None
    if entry is None or any(path.is_file() for path in candidates(entry)):
        return None
    return f"the weights of {options.model} are not on this machine; `encode` would download them"


def _without_weights(options: EncodeOptions, why: str, progress: Progress) -> Estimate:
    """What can be told without an encoder: tiles, files and bytes of a store that is not begun."""
    seen = survey(options, progress)
    selected = selected_tiles(seen.table, seen.selection, seen.volume)
    plan = plan_encode(seen.table, selected, None, options.shard_tiles, store_dtype=options.store_dtype)
    place = Path(options.store or options.cache_dir).absolute()
    device = resolve_device(options.device)
    counted = _count(
        plan, options, place, options.store, device, resolve_precision(options.precision, device)
    )
    return replace(counted, unknown=why)


def _time_tiles(job: EncodeJob, plan: EncodePlan, progress: Progress) -> tuple[float, float]:
    """Seconds per tile for reading (with preprocessing) and for encoding, the first batch not counted."""
    asked = None if job.options.batch_size is None else {"batch": job.options.batch_size}
    encoder = Encoder(job.weights, device=job.device, precision=job.precision, numerics=asked)
    numbers = np.flatnonzero(plan.selected)
    wanted = encoder.batch * (TIMED_BATCHES + 1)
    sample = [int(number) for number in numbers[np.linspace(0, len(numbers) - 1, wanted).astype(int)]]
    read_seconds, inputs = 0.0, []
    for number in sample:
        tile = read_tile(
            job.volume, job.preprocess, number, Tile(*map(int, job.table[number])), skip_empty=False
        )
        read_seconds += tile.read_seconds + tile.preprocess_seconds
        if tile.input is not None:
            inputs.append(tile.input)
    progress.start("timing the encoder", TIMED_BATCHES + 1)
    durations = []
    for start in range(0, len(inputs), encoder.batch):
        begin = time.perf_counter()
        encoder(torch.from_numpy(np.stack(inputs[start : start + encoder.batch])))
        durations.append(time.perf_counter() - begin)
        progress.advance()
    progress.finish()
    counted = durations[1:] or durations or [0.0]
    return read_seconds / max(len(sample), 1), float(np.mean(counted)) / encoder.batch


def _time_writing(size: int) -> float:
    """Seconds to write one embedding durably, measured in the system's temporary folder."""
    block = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    repeats = 8
    with tempfile.TemporaryDirectory(prefix="embedcache-") as folder:
        begin = time.perf_counter()
        write_file(Path(folder) / "probe", [block] * repeats)
        return (time.perf_counter() - begin) / repeats
