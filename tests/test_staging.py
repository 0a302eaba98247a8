"""Shards staged by one process and published by another: nothing is lost, whatever happened between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from other_disks import refusing_rename_to, watched
from store_samples import DIGEST, commit, file_bytes, make_store, spec, stored

from embedcache.errors import EmbedcacheError, StorageError
from embedcache.store import EmbeddingStore
from embedcache.store.shards.given import GivenTiles
from embedcache.store.shards.staging import StagedShard, stage_shard

DTYPES = ["float16", "int8"]


def new_store(path: Path, dtype: str) -> EmbeddingStore:
    return make_store(path, n=4, shard_tiles=4, spec=spec(store_dtype=dtype))


def stage(store: EmbeddingStore, *tiles: int, tag: int = 7, **reasons: dict[int, str]) -> StagedShard:
    """Stage tiles as a worker does, and send what it sends."""
    given = GivenTiles(
        {tile: stored(store, tile) for tile in tiles},
        dict.fromkeys(tiles, DIGEST),
        reasons.get("skipped", {}),
        reasons.get("failed", {}),
    )
    staged = stage_shard(store, 0, given, writer="worker", seconds={}, tag=tag)
    sent = json.dumps(staged.to_dict(store.shard_tiles))
    return StagedShard.from_dict(json.loads(sent), store.shard_tiles)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_staged_shard_shows_nothing_until_it_is_published_and_then_has_the_bytes_of_a_commit(
    tmp_path: Path, dtype: str
) -> None:
    whole, store = new_store(tmp_path / "whole", dtype), new_store(tmp_path / "s", dtype)
    commit(whole, 1, 3)
    commit(store, 1)
    worker = EmbeddingStore.open(store.path)
    before = file_bytes(store.path / "image_embeddings")
    staged = stage(worker, 3, skipped={2: "empty"})
    assert before.items() <= file_bytes(store.path / "image_embeddings").items()
    assert EmbeddingStore.open(store.path).committed.sum() == 1
    with store.writer() as writer:
        pass  # removes what it takes for litter: the worker's files
    with store.writer() as writer:
        staged = stage(worker, 3, skipped={2: "empty"})
        assert writer.publish_shard(staged)
    again = EmbeddingStore.open(store.path)
    assert again.committed.tolist() == [False, True, False, True]
    assert again.skipped.tolist() == [False, False, True, False]
    for folder in ("image_embeddings", "scales"):
        assert file_bytes(store.path / folder) == file_bytes(whole.path / folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_staged_upon_an_older_record_is_not_published(tmp_path: Path, dtype: str) -> None:
    store = new_store(tmp_path / "s", dtype)
    worker = EmbeddingStore.open(store.path)
    with store.writer() as writer:
        early, late = stage(worker, 0, 1, tag=1), stage(worker, 1, 2, tag=2)
        assert writer.publish_shard(early)
        assert not writer.publish_shard(late)  # it would take tile 0 away
    assert EmbeddingStore.open(store.path).committed.tolist() == [True, True, False, False]
    assert not list(store.path.rglob("*.partial"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_publication_that_the_disk_refuses_leaves_the_older_shard(tmp_path: Path, dtype: str) -> None:
    store = new_store(tmp_path / "s", dtype)
    commit(store, 0)
    with store.writer() as writer:
        staged = stage(EmbeddingStore.open(store.path), 1)
        with watched(refusing_rename_to("image_embeddings")), pytest.raises(StorageError):
            writer.publish_shard(staged)
    again = EmbeddingStore.open(store.path)
    with again.writer():
        assert again.committed.tolist() == [True, False, False, False]
        again[0]
    assert not list(store.path.rglob("*.partial"))


def test_a_part_publishes_its_own_shards_only(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s", "float16")
    with store.writer(range(1, 2)) as writer, pytest.raises(EmbedcacheError, match="not held"):
        writer.publish_shard(stage(EmbeddingStore.open(store.path), 0))
