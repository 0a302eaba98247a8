"""Turns recorded pixel digests and today's volume into the tiles whose pixels changed, and into words for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

from embedcache.encode.reading import plan_reading
from embedcache.encode.tile_reader import READER_THREADS
from embedcache.errors import MissingTilesError
from embedcache.geometry import Tile
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.volume import ImageVolume, Preprocess, Volume, pixel_digest

NAMED_PLANES = 12
_AT_ONCE = 64


@dataclass(frozen=True)
class Comparison:
    """Recorded tiles beside the volume as it is now.

    Parameters
    ----------
    compared : int
        Tiles that were read again.
    changed : dict of int to (str, str)
        Tile number to the digest recorded and the digest found.
    """

    compared: int
    changed: dict[int, tuple[str, str]]


def comparable(
    store: EmbeddingStore, volume: Volume, chosen: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Committed tiles whose pixels can be read: of a collection those whose image is in the folder."""
    flags = store.committed
    if chosen is not None:
        flags &= chosen[: len(flags)]
    return readable_now(store, volume, np.flatnonzero(flags))


def readable_now(
    store: EmbeddingStore, volume: Volume, numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Those of the tiles whose image is in the folder; all of an array's."""
    if not isinstance(volume, ImageVolume):
        return numbers
    here = np.array([volume.has(plane) for plane in range(volume.n_planes)], dtype=bool)
    chosen: npt.NDArray[np.int64] = numbers[here[store.table[numbers, 0]]]
    return chosen


def compare(
    store: EmbeddingStore,
    volume: Volume,
    preprocess: Preprocess,
    numbers: npt.NDArray[np.int64],
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> Comparison:
    """Read tiles again and compare their pixels with the digests recorded when they were encoded.

    Raises
    ------
    VolumeError
        When a tile cannot be read: whether it changed is then not known.
    """
    if not len(numbers):
        return Comparison(0, {})
    wanted = np.zeros(len(store), dtype=np.bool_)
    wanted[numbers] = True
    reading = plan_reading(volume, preprocess, store.table, wanted, store.shard_tiles)
    changed: dict[int, tuple[str, str]] = {}
    progress.start("comparing recorded pixels", len(numbers))
    volume.expect(reading)
    try:
        found = digests_now(store, volume, preprocess, reading.numbers())
        for (number, now), recorded in zip(found, recorded_digests(store, reading.numbers()), strict=True):
            if now != recorded:
                changed[number] = (recorded, now)
            progress.advance()
            between()
    finally:
        volume.expect(None)
    progress.finish()
    return Comparison(len(numbers), dict(sorted(changed.items())))


def recorded_digests(store: EmbeddingStore, numbers: Iterable[int]) -> Iterator[str]:
    """The recorded pixel digest of each tile; a shard's record is read once when its numbers come together."""
    for shard, members in groupby(numbers, key=lambda number: number // store.shard_tiles):
        record = store.state.shard_record(shard)
        if record is None:
            raise MissingTilesError(f"{store.path} has no record of shard {shard}.")
        for number in members:
            yield record.digest_of(int(np.searchsorted(record.slots, number % store.shard_tiles)))


def digests_now(
    store: EmbeddingStore, volume: Volume, preprocess: Preprocess, numbers: Iterable[int]
) -> Iterator[tuple[int, str]]:
    """The pixel digest of each tile as the volume is now, read by a few threads."""

    def digest(number: int) -> tuple[int, str]:
        return number, pixel_digest(preprocess.read(volume, Tile(*map(int, store.table[number]))))

    source = iter(numbers)
    with ThreadPoolExecutor(READER_THREADS, thread_name_prefix="embedcache-compare") as pool:
        while some := list(islice(source, _AT_ONCE)):
            yield from pool.map(digest, some)


def planes_in_words(store: EmbeddingStore, numbers: Iterable[int]) -> str:
    """The planes that tiles lie on: ``planes z=12, 14–16``, or the names of images; the first dozen."""
    planes = sorted({int(store.table[number, 0]) for number in numbers})
    if store.uniform:
        runs = [f"{first}–{last}" if last > first else str(first) for first, last in _runs(planes)]
        names, word = runs, "plane z=" if len(planes) == 1 else "planes z="
    else:
        names, word = [store.plane_name(plane) for plane in planes], ""
    more = f" and {len(names) - NAMED_PLANES} more" if len(names) > NAMED_PLANES else ""
    return word + ", ".join(names[:NAMED_PLANES]) + more


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, last)."""
    first = None
    for at, number in enumerate(numbers):
        first = number if first is None else first
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            yield first, number
            first = None
