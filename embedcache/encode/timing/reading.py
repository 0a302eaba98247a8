"""Turns a reading into what its decodes and its tiles cost: a few tiles are read as the run would come by them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedcache.encode.prepare import EncodeJob
from embedcache.encode.reading import Reading
from embedcache.encode.tile_reader import ReadTile, read_tile
from embedcache.encode.timing.forecast import Cost
from embedcache.encode.timing.stopwatch import Stopwatch
from embedcache.geometry import Tile

SPOTS = 4
"""Places of a volume that are read."""

NEIGHBOURS = 3
"""Tiles that are read at each: the first finds nothing decoded, the others what it left."""

READ_SECONDS = 20.0
"""After so long no more tiles are read."""


@dataclass(frozen=True)
class ReadingTimes:
    """What reading a few tiles took.

    Parameters
    ----------
    chunk, tile, preprocess : Cost
        One decode; a tile without its decodes; the host's share of preprocessing it.
    first_chunks : int
        Decodes that the first tile of a place takes.
    encoded : float
        Share of the tiles that must go through the encoder: neither empty nor equal to another.
    sample : tuple of ReadTile
        Tiles that go through the encoder.
    """

    chunk: Cost
    tile: Cost
    preprocess: Cost
    first_chunks: int
    encoded: float
    sample: tuple[ReadTile, ...]


def time_reading(job: EncodeJob, reading: Reading) -> ReadingTimes:
    """Read a few tiles at a few places, as the run would come by them."""
    job.volume.expect(reading)
    tiles, costs, decodes = [], [], []
    begin = time.perf_counter()
    for number in _to_read(reading):
        before, watch = job.volume.reads.chunks, Stopwatch()
        place = Tile(*map(int, job.table[number]))
        tiles.append(read_tile(job.volume, job.preprocess, number, place, empty=job.empty))
        costs.append(watch.read())
        decodes.append(job.volume.reads.chunks - before)
        if time.perf_counter() - begin > READ_SECONDS:
            break
    distinct = {tile.digest: tile for tile in tiles if tile.scaled is not None}
    prepared = [tile.preprocess_seconds for tile in tiles if tile.scaled is not None]
    preprocess = Cost(*2 * [statistics.median(prepared or [0.0])])  # of one thread: clock and processor agree
    chunk, tile = split(costs, decodes)
    return ReadingTimes(
        chunk=chunk,
        tile=Cost(max(tile.wall - preprocess.wall, 0.0), max(tile.cpu - preprocess.cpu, 0.0)),
        preprocess=preprocess,
        first_chunks=max(decodes),
        encoded=len(distinct) / len(tiles),
        sample=tuple(distinct.values()),
    )


def _to_read(reading: Reading) -> list[int]:
    """Numbers of a few missing tiles: neighbours in the order of reading, at places all over it."""
    spots = np.unique(np.linspace(0, len(reading) - 1, SPOTS).astype(int))
    return [
        int(number) for spot in spots for number in reading.members(int(reading.shards[spot]))[:NEIGHBOURS]
    ]


def split(costs: Sequence[Cost], decodes: Sequence[int]) -> tuple[Cost, Cost]:
    """What one decode and what the rest of a tile costs, from what whole tiles cost and how much each decoded.

    Tiles without a decode tell what the rest costs. Where there are none, all is put down to the decodes.
    """
    plain = [cost for cost, count in zip(costs, decodes, strict=True) if not count]
    rest = Cost(
        statistics.median([cost.wall for cost in plain] or [0.0]),
        statistics.median([cost.cpu for cost in plain] or [0.0]),
    )
    total = sum(decodes)
    if not total:
        return Cost(), rest
    decoding = [cost for cost, count in zip(costs, decodes, strict=True) if count]
    return (
        Cost(
            max(sum(cost.wall - rest.wall for cost in decoding), 0.0) / total,
            max(sum(cost.cpu - rest.cpu for cost in decoding), 0.0) / total,
        ),
        rest,
    )
