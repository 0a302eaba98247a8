"""Turns a store and its volume into the list of tiles whose pixels are not the ones that were encoded."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.encode.care.origin import AGAINST, TilePixels, read_again, source_of
from embedcache.encode.identity.comparing import planes_in_words
from embedcache.encode.identity.words import SAMPLED_WINDOW
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.volume import Volume, volume_identity

_THREADS = 2
_AHEAD = 64


@dataclass(frozen=True)
class Comparison:
    """A store beside its volume.

    Parameters
    ----------
    volume : str
        What was compared.
    compared : int
        Tiles whose pixels were read.
    changed : tuple of int
        Tiles whose pixels are not the ones that were encoded.
    unreadable : tuple of int
        Tiles whose pixels cannot be read now; they are among ``changed``.
    places : tuple of str
        Each changed tile in words, in the same order.
    planes : str
        The planes, or images, on which they lie, in words.
    header : dict of str to (object, object)
        Fields of the volume's identity that differ: recorded, now.
    """

    volume: str
    compared: int
    changed: tuple[int, ...]
    unreadable: tuple[int, ...]
    places: tuple[str, ...]
    planes: str
    header: dict[str, tuple[object, object]]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.changed and not self.header

    def to_dict(self, limit: int) -> dict[str, Any]:
        """JSON values; at most ``limit`` tiles are named."""
        return {
            "volume": self.volume,
            "compared": self.compared,
            "tiles_changed": len(self.changed),
            "tiles": list(self.changed[:limit]),
            "unreadable": list(self.unreadable[:limit]),
            "places": list(self.places[:limit]),
            "planes": self.planes,
            "header": {name: list(pair) for name, pair in self.header.items()},
        }


def compare_with(
    store: EmbeddingStore, volume: str | None, numbers: npt.NDArray[np.int64], progress: Progress
) -> Comparison:
    """Read tiles of a volume again and compare their digests with those recorded while encoding.

    Parameters
    ----------
    store : EmbeddingStore
        The store.
    volume : str, optional
        The volume; by default the one that the store was made from.
    numbers : ndarray of int64
        Committed tiles to compare, ascending.
    progress : Progress
        Where to report to.

    Raises
    ------
    InputError
        When the volume cannot be opened.
    MismatchError
        When it is of another shape.
    """
    with source_of(store, volume, AGAINST) as opened:
        progress.start("comparing pixels", len(numbers))
        changed, unreadable = [], []
        for tile in pixels_again(store, opened, numbers):
            if tile.changed:
                changed.append(tile.number)
            if not tile.digest:
                unreadable.append(tile.number)
            progress.advance()
        progress.finish()
        return Comparison(
            volume=opened.source,
            compared=len(numbers),
            changed=tuple(changed),
            unreadable=tuple(unreadable),
            places=tuple(store.describe(number) for number in changed),
            planes=planes_in_words(store, changed) if changed else "",
            header=_header(store, opened),
        )


def pixels_again(
    store: EmbeddingStore, volume: Volume, numbers: npt.NDArray[np.int64]
) -> Iterable[TilePixels]:
    """Recorded tiles read again by a few threads, in order of number."""
    recorded = recorded_digests(store, numbers)
    order = iter(numbers.tolist())
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="embedcache-compare") as pool:
        while some := list(islice(order, _AHEAD)):
            yield from pool.map(lambda number: read_again(store, volume, number, recorded[number]), some)


def recorded_digests(store: EmbeddingStore, numbers: npt.NDArray[np.int64]) -> dict[int, str]:
    """Digest (64 hex digits) of the pixels of committed tiles, as recorded while they were encoded."""
    found: dict[int, str] = {}
    for shard in np.unique(numbers // store.shard_tiles).tolist():
        record = store.state.shard_record(shard)
        if record is not None:
            base = shard * store.shard_tiles
            found |= {base + int(slot): record.digest_of(at) for at, slot in enumerate(record.slots)}
    return {int(number): found[int(number)] for number in numbers}


def _header(store: EmbeddingStore, volume: Volume) -> dict[str, tuple[object, object]]:
    recorded = store.spec.volume
    now = volume_identity(volume, store.spec.grid, store.spec.preprocess)
    return {
        name: (recorded.get(name), now.get(name))
        for name in sorted((set(recorded) | set(now)) - {SAMPLED_WINDOW})
        if recorded.get(name) != now.get(name)
    }
