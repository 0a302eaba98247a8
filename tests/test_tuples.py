"""Planes and triples of planes drawn at random: the same ones on every machine and in every version."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
import zarr
from encode_samples import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.encode.options import options_from
from embedcache.encode.reading import chunk_reads, plan_reading
from embedcache.encode.reading.columns import Reach
from embedcache.errors import VolumeError
from embedcache.geometry import Tile
from embedcache.store import EmbeddingStore
from embedcache.store.base_box import base_box
from embedcache.volume import Preprocess, Selection, TileGrid, open_volume, resolve_preprocess, select
from embedcache.volume.channels import drawn_triples, plane_name
from embedcache.volume.tuples import draw_planes, draw_tuples, parse_random


def noise(folder, planes=9, side=64, dtype="uint16"):
    values = np.random.default_rng(0).integers(1, 60_000, (planes, side, side)).astype(dtype)
    np.save(folder / "scan.npy", values)
    return values, folder / "scan.npy"


def test_what_is_drawn_never_changes():
    """Stores keep the seed, not the planes: another drawing would make other embeddings of one fingerprint."""
    assert draw_tuples(65, 5, 0) == ((14, 28, 64), (7, 10, 29), (37, 44, 59), (3, 12, 19), (1, 37, 57))
    assert draw_tuples(65, 2, 1) == ((12, 18, 22), (50, 52, 55))
    assert draw_planes(65, 5, 0) == (9, 17, 20, 45, 61)
    assert draw_tuples(75_784, 2, 0) == ((14066, 17189, 54143), (68361, 69142, 73234))


@settings(max_examples=60, deadline=None)
@given(planes=st.integers(3, 12), share=st.floats(0, 1), seed=st.integers(0, 1 << 70))
def test_triples_are_different_ascending_and_begin_alike_however_many_are_drawn(planes, share, seed):
    there = comb(planes, 3)
    count = max(1, round(share * there))
    found = draw_tuples(planes, count, seed)
    assert len(set(found)) == len(found) == count
    assert set(found) <= set(combinations(range(planes), 3))
    assert draw_tuples(planes, there, seed)[:count] == found


def test_all_triples_there_are_can_be_drawn_and_each_plane_about_as_often():
    assert set(draw_tuples(9, comb(9, 3), 4)) == set(combinations(range(9), 3))
    often = np.bincount(np.ravel(draw_tuples(65, 3000, 2)), minlength=65)
    assert often.min() > 0.7 * often.mean()
    assert often.max() < 1.3 * often.mean()


@settings(max_examples=40, deadline=None)
@given(planes=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 1 << 70))
def test_planes_are_different_and_ascending(planes, share, seed):
    count = max(1, round(share * planes))
    found = draw_planes(planes, count, seed)
    assert sorted(set(found)) == list(found)
    assert len(found) == count
    assert 0 <= found[0] <= found[-1] < planes


def test_a_seed_may_be_left_out_and_there_is_one_way_of_writing():
    assert parse_random(" Random:12 ", "--z-range") == (12, 0)
    assert Preprocess("random:012") == Preprocess(" RANDOM:12:00 ")
    assert Preprocess("random:12").channels == "random:12:0"
    assert Preprocess("random:12:1") != Preprocess("random:12")


@pytest.mark.parametrize("text", ["random", "random:", "random:x", "random:3:x", "random:-1", "random:1:2:3"])
def test_what_is_no_drawing_is_refused_by_the_options_name(text):
    with pytest.raises(VolumeError, match=rf"--z-range {text}: expected random:N"):
        Selection(z_range=text)
    with pytest.raises(VolumeError, match=r"--channels random.*: expected"):
        Preprocess(text)


@pytest.mark.parametrize("count", [0, 85])
def test_more_triples_than_there_are_and_none_are_refused(count, tmp_path):
    volume = open_volume(noise(tmp_path)[1])
    said = f"random:{count}: N must lie between 1 and 84, the number of different triples of 9 planes"
    with pytest.raises(VolumeError, match=said):
        resolve_preprocess(volume, channels=f"random:{count}")
    assert resolve_preprocess(volume, channels="random:84").n_planes(volume) == 84


def test_two_planes_make_no_triple(tmp_path):
    with pytest.raises(VolumeError, match="needs at least three planes; the volume has 2"):
        resolve_preprocess(open_volume(noise(tmp_path, planes=2)[1]), channels="random:1")


# --- composites -----------------------------------------------------------------------------------------------


def test_a_composite_is_three_whole_planes_as_the_source_has_them(tmp_path):
    values, path = noise(tmp_path)
    volume = open_volume(path)
    recipe = resolve_preprocess(volume, channels="random:5:3", window="dtype")
    for plane, three in enumerate(draw_tuples(9, 5, 3)):
        found = recipe.read(volume, Tile(plane, 5, 7, 20, 30))
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, np.moveaxis(values[list(three)], 0, -1)[5:25, 7:37])


def test_a_composite_is_named_after_its_planes():
    first = draw_tuples(65, 5, 0)[0]
    assert plane_name("random:5:0", 65, 0) == "z=" + "+".join(map(str, first)) == "z=14+28+64"
    assert plane_name("repeat", 65, 12) == plane_name("adjacent:2", 65, 12) == "z=12"
    assert plane_name("depth:0-1,2-3,4-5", 65, 0) == "z=0"


def test_a_store_of_composites_is_encoded_named_widened_and_found_again(tmp_path):
    _, path = noise(tmp_path)
    wishes = {"store": tmp_path / "s.zarr", "channels": "random:5:3", "window": "dtype"}
    part = quick(path, z_range="1:3", **wishes)
    whole = quick(path, **wishes)
    assert (part.encoded, whole.encoded, quick(path, **wishes).encoded) == (2, 3, 0)
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    assert store.spec.preprocess.channels == "random:5:3"
    names = [store.spec.plane_name(plane) for plane in range(5)]
    assert names == ["z=" + "+".join(map(str, three)) for three in draw_tuples(9, 5, 3)]
    first, _, last = draw_tuples(9, 5, 3)[4]
    assert base_box(store, 4)[0] == (first, last + 1)
    # what was read is what the store says: the digest of each tile's pixels
    assert quick(path, check_pixels=None, **wishes).checked_pixels == 5


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 9), z0=st.integers(0, 29), depth=st.integers(1, 30))
def test_the_plan_knows_which_composites_read_a_layer_of_chunks(count, seed, z0, depth):
    recipe = Preprocess(f"random:{count}:{seed}")
    planes, reads = Reach.of(recipe, 30).readers(z0, min(z0 + depth, 30))
    counted = [
        sum(z0 <= plane < z0 + depth for plane in three) for three in drawn_triples(recipe.channels, 30)
    ]
    assert dict(zip(planes.tolist(), reads.tolist(), strict=True)) == {
        at: times for at, times in enumerate(counted) if times
    }


@pytest.mark.parametrize("chunk_planes", [4, 30])
def test_each_chunk_is_decoded_once_for_all_composites(chunk_planes, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (30, 128, 128)).astype(np.uint8)
    array = zarr.create_array(
        str(tmp_path / "v.zarr"), shape=values.shape, chunks=(chunk_planes, 64, 64), dtype="uint8"
    )
    array[...] = values
    volume = open_volume(tmp_path / "v.zarr")
    recipe = Preprocess("random:70:1")
    table = TileGrid(64).table_uniform(recipe.n_planes(volume), 128, 128)
    reading = plan_reading(volume, recipe, table, table[:, 0] >= 0, 64)
    planned = chunk_reads(reading)
    volume.expect(reading)
    for number in reading.numbers():
        recipe.read(volume, Tile(*map(int, table[number])))
    assert volume.reads.chunks == planned.planned == planned.distinct == 4 * -(-30 // chunk_planes)
    assert volume.cache.bytes_held == 0


def test_the_planes_drawn_for_a_selection_are_those_of_the_volume(tmp_path):
    volume = open_volume(noise(tmp_path)[1])
    table = TileGrid(32).table_uniform(9, 64, 64)
    wanted = select(table, Selection(z_range="random:4:7"), volume=volume)
    assert tuple(np.unique(table[wanted, 0]).tolist()) == draw_planes(9, 4, 7)
    with pytest.raises(VolumeError, match="N must lie between 1 and 9, the number of planes"):
        select(table, Selection(z_range="random:10"), volume=volume)


def test_options_refuse_nothing_that_a_volume_may_have():
    assert options_from("v", {"channels": "random:3", "z_range": "random:2"}).channels == "random:3"
