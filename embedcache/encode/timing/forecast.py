"""Turns what the pieces of a run cost and how much there is to do into a ``Forecast`` of the run's seconds.

The stages of a run overlap (but for encoding and writing on a CPU), so the slowest of them sets the pace; and what
all of them compute must find room on the processor's cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcache.encode.tile_reader import READER_THREADS


@dataclass(frozen=True)
class Cost:
    """What one piece of work takes.

    Parameters
    ----------
    wall : float
        Seconds on the clock while nothing else is done.
    cpu : float
        Seconds of processor time, of all threads.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.wall * times, self.cpu * times)


@dataclass(frozen=True)
class Costs:
    """What the pieces of a run take on one machine.

    Parameters
    ----------
    start : float
        Seconds before the first tile: opening, weights, the encoder, making the store.
    chunk : Cost
        Fetching and decoding one chunk of the source.
    read, preprocess : Cost
        Of one tile, in the reading threads: putting it together from decoded chunks, and resizing it.
    fill : Cost
        Of one tile: normalising it, or sending it to the GPU.
    encode, write : Cost
        Of one tile: through the encoder and into the stored form; and committed, as part of a shard.
    """

    start: float
    chunk: Cost
    read: Cost
    preprocess: Cost
    fill: Cost
    encode: Cost
    write: Cost


@dataclass(frozen=True)
class Work:
    """How much there is to do, and by whom.

    Parameters
    ----------
    tiles, chunks : int
        To be read and committed; decodes of source chunks on the way.
    encoded : float
        Share of the tiles that goes through the encoder; the others are empty or copies.
    shard_tiles : int
        Tiles of one commit.
    first_chunks : int
        Of the decodes, those that the first tile waits for.
    cores : int
        Of the processor.
    workers : int
        Processes that share the work.
    ahead : bool
        Whether the encoder goes on while a shard is written, as on a GPU; on a CPU it waits.
    """

    tiles: int
    chunks: int
    encoded: float
    shard_tiles: int
    first_chunks: int
    cores: int
    workers: int = 1
    ahead: bool = False


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Parameters
    ----------
    seconds, start : float
        In all; and of it before and after the steady middle: start-up, the first read, the last commit.
    per_tile : float
        Seconds per tile in the middle.
    by_stage : dict of str to float
        Seconds per tile of each stage if it had the machine to itself.
    bottleneck : str
        The stage that sets the pace.
    """

    seconds: float
    start: float
    per_tile: float
    by_stage: dict[str, float]
    bottleneck: str


def forecast(costs: Costs, work: Work) -> Forecast:
    """What a run of this work will take at these costs."""
    tiles = max(work.tiles, 1)
    read = costs.read + costs.chunk * (work.chunks / tiles)
    encode = costs.encode * work.encoded
    prepare = costs.preprocess * work.encoded
    fill = costs.fill * work.encoded
    by_stage = {
        "read": read.wall / READER_THREADS,
        "preprocess": prepare.wall / READER_THREADS + fill.wall,
        "encode": encode.wall,
        "write": costs.write.wall,
    }
    readers = (read + prepare).wall / READER_THREADS
    encoder = max(encode.wall, costs.write.wall) if work.ahead else encode.wall + costs.write.wall
    alone = max(readers, fill.wall, encoder) / work.workers
    computed = {
        "read": read.cpu,
        "preprocess": (prepare + fill).cpu,
        "encode": encode.cpu,
        "write": costs.write.cpu,
    }
    crowded = sum(computed.values()) / work.cores
    by_what = by_stage if alone >= crowded else computed
    per_tile = max(alone, crowded)
    first = costs.chunk.wall * work.first_chunks + costs.read.wall  # nothing overlaps with these two
    last = costs.write.wall * min(work.shard_tiles, tiles)
    start = costs.start + first + last if work.tiles else costs.start
    return Forecast(
        seconds=start + per_tile * work.tiles,
        start=start,
        per_tile=per_tile,
        by_stage=by_stage,
        bottleneck=max(by_what, key=lambda stage: by_what[stage]),
    )


def break_even(found: Forecast, tiles: int) -> float:
    """Epochs after which encoding once has paid.

    An epoch with the encoder inside costs reading and encoding again; one from the cache costs reading it back,
    which is no slower than writing it was.
    """
    stages = found.by_stage
    in_the_loop = max(stages["read"] + stages["preprocess"], stages["encode"])
    return found.seconds / (max(in_the_loop - stages["write"], 1e-9) * tiles)
