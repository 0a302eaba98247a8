"""An encode of a store that another one is writing is refused before it reads a pixel again."""

from __future__ import annotations

from pathlib import Path

import pytest
from encode_samples import quick, scan

from embedcache.errors import LockedError
from embedcache.progress import Silent
from embedcache.store import EmbeddingStore


class Begun(Silent):
    """Keeps what was begun."""

    def __init__(self) -> None:
        self.what: list[str] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.what.append(what)


def test_a_locked_store_is_told_before_pixels_are_compared(tmp_path: Path) -> None:
    volume, store = scan(tmp_path / "scan.npy"), tmp_path / "s.zarr"
    quick(volume, store=store, z_range="0:2")
    begun = Begun()
    with EmbeddingStore.open(store).writer():
        with pytest.raises(LockedError, match="the whole store is being written by process"):
            quick(volume, begun, store=store)
        assert begun.what == []
        assert (
            quick(volume, begun, store=store, z_range="0:2").encoded == 0
        )  # all is there: no lock is needed
    assert begun.what == ["comparing recorded pixels"]


def test_a_part_is_only_refused_by_a_writer_of_its_own_shards(tmp_path: Path) -> None:
    volume, store = scan(tmp_path / "scan.npy"), tmp_path / "s.zarr"
    quick(volume, store=store, z_range="0:1")
    with EmbeddingStore.open(store).writer(range(0, 1)):
        with pytest.raises(LockedError, match="shard 0 is being written by process"):
            quick(volume, store=store, num_parts=2, part_id=0)
        assert quick(volume, store=store, num_parts=2, part_id=1).encoded > 0
