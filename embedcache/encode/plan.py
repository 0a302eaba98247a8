"""Turns a volume, options and what a store already holds into an ``EncodePlan``: what is missing, what it takes.

Nothing here encodes or writes; the plan says which shards hold missing tiles, how many bytes they need, and
refuses when the disk is too small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from embedcache.encode.sizes import readable_bytes
from embedcache.errors import StorageError
from embedcache.store.shards.scales import ROW_BYTES
from embedcache.store.shards.shard import INT8, form_of, index_bytes

FREE_MARGIN_BYTES = 64 << 20
"""Bytes that stay free beside the embeddings: journal, decoder, tile table."""


@dataclass(frozen=True)
class EncodePlan:
    """What one ``encode`` has to do.

    Parameters
    ----------
    total : int
        Tiles of the whole grid (numbers without a tile are not counted).
    selected : (N,) bool
        Tiles this command asks for.
    missing : (N,) bool
        Selected tiles the store does not hold yet and did not skip.
    shard_tiles : int
        Tile numbers in one shard.
    store_dtype : str
        Element type of the stored embeddings.
    views : int
        Views in which each selected place is asked for.
    """

    total: int
    selected: npt.NDArray[np.bool_]
    missing: npt.NDArray[np.bool_]
    shard_tiles: int
    store_dtype: str = "float16"
    views: int = 1

    @property
    def bytes_per_tile(self) -> int:
        """Bytes of one stored embedding, its checksum, index entry and scales included."""
        return bytes_per_tile(self.store_dtype)

    @property
    def bytes_needed(self) -> int:
        """Bytes the missing embeddings will take."""
        return int(self.missing.sum()) * self.bytes_per_tile

    @property
    def bytes_to_be_free(self) -> int:
        """Bytes that must be free before the first is written: a shard is replaced while its older half stands."""
        if not self.missing.any():
            return 0
        replaced = min(self.shard_tiles, int(self.missing.sum())) * self.bytes_per_tile
        return self.bytes_needed + replaced + FREE_MARGIN_BYTES

    @property
    def files(self) -> int:
        """Shards, and so files, that hold selected tiles."""
        return len(np.unique(np.flatnonzero(self.selected) // self.shard_tiles))

    def within(self, shards: range) -> EncodePlan:
        """The part of the plan that lies in some shards."""
        inside = np.zeros(len(self.selected), dtype=np.bool_)
        inside[shards.start * self.shard_tiles : shards.stop * self.shard_tiles] = True
        return replace(self, selected=self.selected & inside, missing=self.missing & inside)

    def shards(self) -> Iterator[tuple[int, list[int]]]:
        """Each shard with missing tiles, and their numbers, in order."""
        numbers = np.flatnonzero(self.missing)
        owners = numbers // self.shard_tiles
        for members in np.split(numbers, np.flatnonzero(np.diff(owners)) + 1):
            if len(members):  # np.split of nothing gives one empty part
                yield int(members[0]) // self.shard_tiles, members.tolist()

    def require_space(self, bytes_free: int, where: str, so_far: str = "Nothing was written.") -> None:
        """Refuse before the first byte when the disk cannot hold what is missing; ``so_far`` says what was done.

        Raises
        ------
        StorageError
            Names the bytes needed and free, and selections that would fit.
        """
        if self.bytes_to_be_free <= bytes_free:
            return
        count, reserve = int(self.missing.sum()), readable_bytes(self.bytes_to_be_free - self.bytes_needed)
        raise StorageError(
            f"{where}: {count:,} embeddings need {readable_bytes(self.bytes_needed)}, and {reserve} in reserve (a "
            "shard is replaced while its older half stands), "
            f"but only {readable_bytes(bytes_free)} are free. {so_far}",
            hint=self._what_fits(bytes_free),
        )

    def _what_fits(self, bytes_free: int) -> str:
        usable = max(bytes_free - (self.bytes_to_be_free - self.bytes_needed), 0)
        times = self.bytes_needed / max(usable, 1)
        if not usable or times >= 1e6:
            return "Free some space, or give a --cache-dir on a larger disk."
        levels = max(1, int(np.ceil(np.log(times) / np.log(4.0))))
        half = bytes_per_tile(self.store_dtype) / bytes_per_tile("int8")
        smaller = {8: "--views flips (half of them) or none, ", 4: "--views none, "}.get(self.views, "")
        if 1 < times <= half:
            smaller += "--store-dtype int8 (half the bytes, nearly the same masks), "
        return (
            f"To fit: {smaller}a --level {levels} higher (each level has a quarter of the tiles per plane), "
            f"a step of --z-range A:B:{int(np.ceil(times))}, a --bbox or --mask with {100 / times:.0f} % of the "
            "tiles, or a --cache-dir on a larger disk."
        )


def plan_encode(
    table: npt.NDArray[np.int64],
    selected: npt.NDArray[np.bool_],
    done: npt.NDArray[np.bool_] | None,
    shard_tiles: int,
    *,
    store_dtype: str = "float16",
    views: int = 1,
) -> EncodePlan:
    """The plan for a tile table, a selection, and the tiles a store holds or has skipped.

    Parameters
    ----------
    table : (N, 5) or (N, 6) int64
        The tile table.
    selected : (N,) bool
        What is asked for.
    done : (M,) bool, optional
        What needs no work; None when there is no store yet. Numbers from M on are new; those from N on belong to
        images that others have added since the table was made.
    shard_tiles : int
        Tile numbers in one shard.
    store_dtype : str
        Element type of the stored embeddings.
    views : int
        Views in which each selected place is asked for.
    """
    missing = selected.copy()
    if done is not None:
        missing[: len(done)] &= ~done[: len(missing)]
    return EncodePlan(int((table[:, 0] >= 0).sum()), selected, missing, shard_tiles, store_dtype, views)


def bytes_per_tile(store_dtype: str) -> int:
    """Bytes that one embedding takes in a store, with its checksum, index entry and scales."""
    form = form_of(store_dtype)
    entry = index_bytes(2) - index_bytes(1)
    return form.chunk_bytes + entry + (ROW_BYTES if form is INT8 else 0)
