"""diff says which fields and which tiles tell two stores apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from care_samples import filled, filled_int8, replace_tiles
from store_samples import DIGEST, commit, embedding, make_store, spec, table

from embedcache.store.care.diff import diff
from embedcache.volume.tiles import TileGrid
from embedcache.volume.volume import ImageRecord


def test_two_stores_of_the_same_are_the_same(tmp_path: Path) -> None:
    found = diff(filled(tmp_path / "a"), filled(tmp_path / "b"))
    assert (found.same, found.exit_code, found.equal) == (True, 0, 6)
    assert found.to_dict() == {
        "same": True,
        "fields": {},
        "tiles_equal": 6,
        "tiles_only_a": 0,
        "tiles_only_b": 0,
        "tiles_different": 0,
        "only_a": [],
        "only_b": [],
        "different": [],
    }


def test_how_tiles_are_laid_into_shards_makes_no_difference(tmp_path: Path) -> None:
    assert diff(filled(tmp_path / "a", shard_tiles=3), filled(tmp_path / "b", shard_tiles=2)).same


def test_tiles_that_differ_or_that_one_lacks_are_named(tmp_path: Path) -> None:
    a, b = filled(tmp_path / "a"), make_store(tmp_path / "b", n=6, shard_tiles=3)
    commit(b, 0, 1)
    commit(b, 3, 4, 5)
    found = diff(a, b)
    assert (found.only_a, found.only_b, found.equal) == ((2,), (), 0)
    assert found.different == (0, 1, 3, 4, 5)  # equal bytes of other pixels
    assert found.exit_code == 3
    assert diff(b, a).only_b == (2,)


def test_scales_alone_tell_tiles_apart(tmp_path: Path) -> None:
    a, b = filled_int8(tmp_path / "a", n=3), filled_int8(tmp_path / "b", n=3)
    assert diff(a, b).same
    values = embedding(7)
    from care_samples import stored

    quantised = stored(b, 7)
    assert values is not None
    doubled = type(quantised)(quantised.values, quantised.scales * 2)
    with a.writer() as writer:
        writer.commit_shard(0, embeddings={0: quantised}, input_digests={0: DIGEST})
    with b.writer() as writer:
        writer.commit_shard(0, embeddings={0: doubled}, input_digests={0: DIGEST})
    assert diff(a, b).different == (0,)


def test_fields_and_numerics_that_differ_are_named(tmp_path: Path) -> None:
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b", spec=spec(precision="bf16"))
    with b.writer() as writer:
        writer.decide_numerics({"threads": 4})
    found = diff(a, b)
    assert found.fields == {"precision": ("fp32", "bf16"), "numerics.threads": (None, 4)}
    assert found.exit_code == 3


def test_where_the_grids_differ_tiles_are_matched_by_place(tmp_path: Path) -> None:
    """Half the planes: the second grid numbers its tiles otherwise, 64 planes to a block."""
    small = TileGrid(32).table_uniform(2, 32, 64)
    large = TileGrid(32).table_uniform(70, 32, 64)
    a, b = (
        make_store(tmp_path / name, table=rows, spec=spec(grid=TileGrid(32)), shard_tiles=64)
        for name, rows in (("a", small), ("b", large))
    )
    commit(a, 64)  # plane 0, second column
    commit(b, 64)
    assert diff(a, b).equal == 1
    commit(b, 128)  # plane 64, which a does not have
    found = diff(a, b)
    assert (found.equal, found.only_b) == (1, (128,))


def test_images_are_matched_by_name(tmp_path: Path) -> None:
    images = [ImageRecord(f"{name}.jpg", 32, 32, name * 64) for name in "ab"]
    rows = table(2)
    a = make_store(tmp_path / "a", table=rows, images=images)
    b = make_store(tmp_path / "b", table=rows, images=images[::-1])
    commit(a, 0, seed=0)
    commit(b, 1, seed=-1)
    assert (diff(a, b).equal, diff(a, b).same) == (1, True)


def test_long_lists_are_cut_and_counts_are_not(tmp_path: Path) -> None:
    a, b = filled(tmp_path / "a", n=3), make_store(tmp_path / "b", n=3, shard_tiles=3)
    found = diff(a, b)
    replaced = type(found)(found.fields, 0, tuple(range(5000)), (), ())
    assert replaced.to_dict()["tiles_only_a"] == 5000
    assert len(replaced.to_dict()["only_a"]) == 1000


def test_a_store_without_a_tile_is_compared_too(tmp_path: Path) -> None:
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b")
    assert diff(a, b).same
    assert np.count_nonzero(a.committed) == 0


def test_replaced_tiles_differ(tmp_path: Path) -> None:
    a, b = filled(tmp_path / "a"), filled(tmp_path / "b")
    replace_tiles(b, 1, seed=9)
    assert diff(a, b).different == (3, 4, 5)
