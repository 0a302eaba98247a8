"""Each source chunk is decoded once, in bounded memory, whatever the order of the tiles' numbers."""

from __future__ import annotations

import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from counting_codecs import LAYOUTS, counted
from encode_samples import quick, shard_digests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from embedcache.encode.reading import Reading, chunk_reads, plan_reading, task_groups
from embedcache.encode.reading.columns import Reach, columns_of
from embedcache.errors import VolumeError
from embedcache.geometry import Tile
from embedcache.store.views import grown, table_of
from embedcache.volume import Preprocess, TileGrid, Volume, open_volume

Table = np.ndarray


def source(path: Path, size: tuple[int, int, int], chunks: tuple[int, int, int], **layout: Any) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    array = zarr.create_array(str(path), shape=size, chunks=chunks, dtype="u1", **(layout or LAYOUTS["v2"]))
    array[...] = values
    return values


def tiles_of(volume: Volume, preprocess: Preprocess, tile: int, overlap: int = 0) -> Table:
    return TileGrid(tile, overlap).table_uniform(preprocess.n_planes(volume), *volume.plane_size(0))


def read_all(volume: Volume, preprocess: Preprocess, table: Table, reading: Reading) -> Iterator[np.ndarray]:
    """What a run does: every missing tile once, in the order of the reading."""
    volume.expect(reading)
    for _, members in reading:
        for number in members:
            yield preprocess.read(volume, Tile(*map(int, table[number])))
    volume.expect(None)


def decodes(path: Path | str, *, tile: int, overlap: int = 0, channels: str = "repeat",
            memory: int = 2 << 30, shard_tiles: int = 64) -> tuple[int, int, int]:  # fmt: skip
    """Decodes of reading a whole volume: those counted in the codec, those planned, distinct chunks."""
    preprocess = Preprocess(channels)
    with open_volume(path, read_memory=memory) as volume, counted() as count:
        table = tiles_of(volume, preprocess, tile, overlap)
        reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, shard_tiles)
        for _ in read_all(volume, preprocess, table, reading):
            assert volume.cache.bytes_held <= memory
        assert volume.cache.bytes_held == 0
        assert volume.reads.chunks == count[0]
        expected = chunk_reads(reading)
        return count[0], expected.planned, expected.distinct


# --- each chunk once ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(20, 70), st.integers(20, 70)),
    chunks=st.tuples(st.integers(1, 140), st.integers(9, 80), st.integers(9, 80)),
    tile=st.integers(16, 40),
    overlap=st.integers(0, 15),
    channels=st.sampled_from(["repeat", "adjacent:1", "adjacent:9"]),
    shard_tiles=st.sampled_from([64, 20, 130]),
    layout=st.sampled_from(list(LAYOUTS)),
    some=st.integers(1, 7),
)
def test_with_enough_memory_each_chunk_is_decoded_once_and_every_tile_read(
    size: Any, chunks: Any, tile: int, overlap: int, channels: str, shard_tiles: int, layout: str, some: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, counted() as count:
        values = source(Path(folder) / "a", size, chunks, **LAYOUTS[layout])
        volume, preprocess = open_volume(Path(folder) / "a"), Preprocess(channels)
        table = tiles_of(volume, preprocess, tile, overlap)
        missing = (table[:, 0] >= 0) & (np.arange(len(table)) * 7919 % 11 < some)
        reading = plan_reading(volume, preprocess, table, missing, shard_tiles)
        count[0] = seen = 0
        for _ in read_all(volume, preprocess, table, reading):
            seen += 1
        touched = {
            (z // chunks[0], y // chunks[1], x // chunks[2])
            for plane, y0, x0, height, width in table[missing].tolist()
            for z in source_planes(channels, plane, size[0])
            for y in (*range(y0, y0 + height, chunks[1]), y0 + height - 1)
            for x in (*range(x0, x0 + width, chunks[2]), x0 + width - 1)
        }
        expected = chunk_reads(reading)
        assert seen == missing.sum()
        assert count[0] == expected.planned == expected.distinct == len(touched)
        assert volume.cache.bytes_held == 0
        number = int(np.flatnonzero(missing)[0]) if missing.any() else 0
        plane, y0, x0, height, width = table[number].tolist()
        found = volume.read(plane, slice(y0, y0 + height), slice(x0, x0 + width))
        np.testing.assert_array_equal(found, values[plane, y0 : y0 + height, x0 : x0 + width])


def source_planes(channels: str, plane: int, n_planes: int) -> list[int]:
    step = int(channels.split(":")[1]) if ":" in channels else 0
    return [min(max(plane + shift, 0), n_planes - 1) for shift in (-step, 0, step)]


PIECE = 128 * 32 * 32


@pytest.mark.parametrize(
    ("tile", "overlap", "channels", "memory"),
    [
        (64, 0, "repeat", 9 * PIECE),
        (64, 0, "adjacent:2", 30 * PIECE),
        (64, 16, "repeat", 27 * PIECE),
        (96, 32, "repeat", 50 * PIECE),
        (64, 0, "depth:0-100,20-150,120-200", 20 * PIECE),
    ],
)
def test_chunks_of_two_blocks_of_planes_are_decoded_once_in_a_small_part_of_the_volume(
    tmp_path: Path, tile: int, overlap: int, channels: str, memory: int
) -> None:
    source(tmp_path / "a", (256, 256, 256), (128, 32, 32))
    found, planned, distinct = decodes(
        tmp_path / "a", tile=tile, overlap=overlap, channels=channels, memory=memory
    )
    assert found == distinct == 128
    assert planned <= 1.2 * distinct


@pytest.mark.parametrize(
    ("chunks", "tile", "overlap", "channels", "memory", "most"),
    [
        ((128, 32, 32), 64, 16, "repeat", 8 * PIECE, 5.5),
        ((100, 32, 32), 64, 16, "adjacent:3", 10 * PIECE, 5),
        ((1, 64, 256), 64, 0, "repeat", 256 * 8 * 256, 2.5),
        ((128, 128, 256), 64, 0, "repeat", 1 << 20, 8),
        ((128, 256, 256), 64, 0, "repeat", 1 << 18, 128),
    ],
)
def test_too_little_memory_costs_decodes_as_foretold_and_stays_within_its_bound(
    tmp_path: Path, chunks: Any, tile: int, overlap: int, channels: str, memory: int, most: float
) -> None:
    source(tmp_path / "a", (128, 256, 256), chunks)
    found, planned, distinct = decodes(
        tmp_path / "a", tile=tile, overlap=overlap, channels=channels, memory=memory
    )
    assert distinct < found <= planned <= most * distinct


def test_two_threads_that_read_ahead_decode_each_chunk_once(tmp_path: Path) -> None:
    values = source(tmp_path / "a", (200, 100, 100), (100, 30, 30), **LAYOUTS["v3"])
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("adjacent:1")
    table = tiles_of(volume, preprocess, 40, 8)
    reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
    order = [number for _, members in reading for number in members]
    volume.expect(reading)
    with counted() as count, ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda number: preprocess.read(volume, Tile(*map(int, table[number]))), order)
        for number, pixels in zip(order, found, strict=True):
            plane, y0, x0, height, width = table[number].tolist()
            np.testing.assert_array_equal(pixels[..., 1], values[plane, y0 : y0 + height, x0 : x0 + width])
        assert count[0] == chunk_reads(reading).distinct == 2 * 4 * 4


def test_a_sharded_source_is_decoded_once(tmp_path: Path) -> None:
    source(tmp_path / "a", (128, 128, 128), (64, 32, 32), shards=(128, 64, 128), **LAYOUTS["v3"])
    assert decodes(tmp_path / "a", tile=64, overlap=16)[0] == 32


def test_hdf5_chunks_are_read_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (70, 60, 60), np.uint8)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=values, chunks=(70, 20, 30), compression="gzip")
    volume, preprocess = open_volume(tmp_path / "v.h5"), Preprocess("repeat")
    table = tiles_of(volume, preprocess, 32, 4)
    reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
    total = sum(int(pixels.sum()) for pixels in read_all(volume, preprocess, table, reading))
    assert total == sum(
        int(values[p, y : y + h, x : x + w].sum()) for p, y, x, h, w in table.tolist() if p >= 0
    )
    assert volume.reads.chunks == chunk_reads(reading).distinct == 3 * 2
    assert volume.reads.bytes == values.nbytes


def test_strips_of_tiff_pages_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (70, 512, 64), np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", pages, compression="zlib", rowsperstrip=16, metadata=None)
    inflated = []
    whole = zlib.decompress
    monkeypatch.setattr(
        zlib, "decompress", lambda *some, **more: (inflated.append(1), whole(*some, **more))[1]
    )
    volume, preprocess = open_volume(tmp_path / "v.tif", read_memory=1 << 20), Preprocess("repeat")
    table = tiles_of(volume, preprocess, 32)
    reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
    for _ in read_all(volume, preprocess, table, reading):
        pass
    assert len(inflated) == 70 * 512 // 16
    assert volume.reads.chunks == chunk_reads(reading).distinct == 70 * 4  # bundles of 128 rows
    inflated.clear()
    volume.read(3, slice(130, 140), slice(0, 9))
    assert len(inflated) == 128 // 16


def test_each_image_of_a_folder_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    loaded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (loaded.append(id(image)), load(image))[1])
    volume, preprocess = open_volume(tmp_path, read_memory=1), Preprocess("repeat")
    table = TileGrid(32, 4).table_images([(90, 70)] * 3)
    reading = plan_reading(volume, preprocess, table, np.ones(len(table), bool), 7)
    for _ in read_all(volume, preprocess, table, reading):
        pass
    assert volume.reads.chunks == chunk_reads(reading).distinct == 3
    assert len(set(loaded)) <= 3


# --- what is not planned ------------------------------------------------------------------------------------


def test_a_single_tile_decodes_no_more_than_its_own_chunks(tmp_path: Path) -> None:
    source(tmp_path / "a", (256, 256, 256), (128, 32, 32))
    with open_volume(tmp_path / "a", read_memory=PIECE) as volume, counted() as count:
        volume.read(200, slice(64, 128), slice(64, 128))
        assert count[0] == 4
        assert volume.cache.bytes_held <= PIECE
        count[0] = 0
        volume.read(3, slice(70, 80), slice(31, 33))
        assert count[0] == 2


def test_what_was_decoded_before_is_used_and_what_does_not_fit_goes(tmp_path: Path) -> None:
    source(tmp_path / "a", (128, 64, 64), (128, 32, 32))
    preprocess = Preprocess("repeat")
    with open_volume(tmp_path / "a") as volume, counted() as count:
        volume.read(5, slice(0, 64), slice(0, 32))
        table = tiles_of(volume, preprocess, 32)
        reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
        for _ in read_all(volume, preprocess, table, reading):
            pass
        assert count[0] == 4
        assert volume.cache.bytes_held == 0
    with open_volume(tmp_path / "a", read_memory=PIECE) as volume, counted() as count:
        volume.read(5, slice(0, 64), slice(0, 64))  # keeps thin parts of four chunks
        reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
        count[0] = 0
        for _ in read_all(volume, preprocess, table, reading):
            pass
        assert count[0] == 4 * 2
        assert volume.cache.bytes_held <= PIECE // 2


def test_a_damaged_chunk_fails_its_own_tiles_and_costs_the_others_nothing(tmp_path: Path) -> None:
    source(tmp_path / "a", (64, 64, 64), (64, 32, 32))
    (tmp_path / "a" / "0.1.0").write_bytes(b"short")
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("repeat")
    table = tiles_of(volume, preprocess, 32)
    reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
    volume.expect(reading)
    failed, reasons = [], set()
    for _, members in reading:
        for number in members:
            try:
                preprocess.read(volume, Tile(*map(int, table[number])))
            except VolumeError as error:
                reasons.add(str(error).partition(" cannot")[0].partition(": ")[2])
                failed.append(tuple(table[number, 1:3]))
    assert set(failed) == {(32, 0)}
    assert len(failed) == 64
    assert reasons == {"planes 0:64, rows 32:64, columns 0:32"}
    assert volume.reads.chunks == 3


# --- task groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["repeat", "adjacent:1", "depth:0-3,4-9,10-12"])
@pytest.mark.parametrize(("workers", "shard_tiles"), [(1, 64), (3, 64), (2, 100)])
def test_groups_are_whole_shards_and_together_all_of_them(
    tmp_path: Path, channels: str, workers: int, shard_tiles: int
) -> None:
    source(tmp_path / "a", (200, 100, 100), (100, 30, 30))
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess(channels)
    table = tiles_of(volume, preprocess, 32, 4)
    missing = (table[:, 0] >= 0) & (np.arange(len(table)) % 3 > 0)
    groups = task_groups(
        volume, preprocess, table, missing, shard_tiles, memory_bytes=1 << 30, workers=workers
    )
    tiles = [number for group in groups for members in group.tiles for number in members]
    assert sorted(tiles) == np.flatnonzero(missing).tolist()
    shards = [shard for group in groups for shard in group.shards]
    assert len(set(shards)) == len(shards)
    for group in groups:
        for shard, members in zip(group.shards, group.tiles, strict=True):
            assert {number // shard_tiles for number in members} == {shard}
    assert groups[-1] == groups[len(groups) - 1]
    assert sum(group.count for group in groups[:2]) == sum(group.count for group in list(groups)[:2])


def test_the_two_blocks_of_a_column_that_share_chunks_are_one_group(tmp_path: Path) -> None:
    source(tmp_path / "a", (256, 128, 128), (128, 32, 32))
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("repeat")
    table = tiles_of(volume, preprocess, 64)
    groups = task_groups(volume, preprocess, table, table[:, 0] >= 0, 64, memory_bytes=1 << 30, workers=2)
    columns = 4
    assert [group.shards for group in groups][:2] == [(0, columns), (2 * columns, 3 * columns)]
    assert len(groups) == 2 * columns


def test_a_volume_of_one_column_gives_every_worker_something_to_do(tmp_path: Path) -> None:
    """Chunks that several workers decode cost less than workers without work."""
    source(tmp_path / "a", (128, 64, 64), (128, 32, 32))
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("repeat")
    table = tiles_of(volume, preprocess, 64)
    groups = task_groups(volume, preprocess, table, table[:, 0] >= 0, 8, memory_bytes=1 << 30, workers=2)
    assert [group.count for group in groups] == [16] * 8
    assert [shard for group in groups for shard in group.shards] == list(range(16))


def test_the_shards_of_one_image_are_one_group_up_to_a_size(tmp_path: Path) -> None:
    for name in "abc":
        Image.fromarray(np.zeros((90, 70), np.uint8)).save(tmp_path / f"{name}.png")
    volume = open_volume(tmp_path)
    table = TileGrid(32, 0).table_images([(90, 70), (33, 32), (90, 70)])  # 9, 2 and 9 tiles
    groups = task_groups(volume, Preprocess("repeat"), table, np.ones(20, bool), 3, memory_bytes=1, workers=1)
    assert [group.shards for group in groups] == [(0,), (1,), (2,), (3,), (4,), (5,), (6,)]
    table = TileGrid(8, 0).table_images([(90, 70), (33, 32), (90, 70)])  # 108, 20 and 108 tiles
    groups = task_groups(
        volume, Preprocess("repeat"), table, np.ones(236, bool), 12, memory_bytes=1, workers=1
    )
    assert [len(group.shards) for group in groups] == [4, 4, 1, 4, 4, 3]


# --- planning for many tiles ----------------------------------------------------------------------------------


def test_planning_takes_a_few_bytes_per_tile_whatever_the_number(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a"), shape=(4096, 8192, 8192), chunks=(128, 128, 128), dtype="u1")
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("adjacent:1")
    table = tiles_of(volume, preprocess, 512)
    missing = np.ones(len(table), bool)
    tracemalloc.start()
    reading = plan_reading(volume, preprocess, table, missing, 64)
    groups = task_groups(volume, preprocess, table, missing, 64, memory_bytes=1 << 28, workers=4)
    expected = chunk_reads(reading)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(missing) == 4096 * 256
    assert used < 5 * len(missing)
    assert expected.distinct == 32 * 64 * 64
    assert len(reading) == sum(len(group.shards) for group in groups) == 64 * 256
    assert max(group.count for group in groups) <= 1024


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.sampled_from([(0,), (-1, 0, 1), (-30, 0, 30), (-200, 0, 200)]), st.data())
def test_the_readers_of_planes_are_the_tiles_that_read_them(n_planes: int, shifts: Any, data: Any) -> None:
    z0 = data.draw(st.integers(0, n_planes - 1))
    z1 = data.draw(st.integers(z0 + 1, n_planes))
    planes, reads = Reach(n_planes, shifts).readers(z0, z1)
    expected = {}
    for plane in range(n_planes):
        count = sum(z0 <= min(max(plane + shift, 0), n_planes - 1) < z1 for shift in shifts)
        if count:
            expected[plane] = count
    assert dict(zip(planes.tolist(), reads.tolist(), strict=True)) == expected


def test_the_columns_of_a_table_are_those_it_was_made_of() -> None:
    grid = TileGrid(16, 4)
    columns = columns_of(grid.table_uniform(130, 50, 70))
    boxes = grid.boxes(50, 70)
    assert (columns.blocks, columns.count, columns.height, columns.width) == (3, len(boxes), 16, 16)
    assert sorted({*boxes[:, 0].tolist()}) == columns.ys.tolist()
    assert sorted({*boxes[:, 1].tolist()}) == columns.xs.tolist()


def test_what_will_be_decoded_is_said_in_words(tmp_path: Path) -> None:
    source(tmp_path / "a", (128, 256, 256), (128, 32, 32))
    preprocess = Preprocess("repeat")
    words = []
    for memory in (2 << 30, 8 * PIECE):
        volume = open_volume(tmp_path / "a", read_memory=memory)
        table = tiles_of(volume, preprocess, 64, 16)
        words.append(chunk_reads(plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)).in_words())
    assert words[0] == "Each of 64 source chunks is decoded once."
    assert words[1].startswith("Each of 64 source chunks is decoded ")
    assert "times; once with --read-memory" in words[1]
    np.save(tmp_path / "v.npy", np.zeros((3, 20, 20), np.uint8))
    volume = open_volume(tmp_path / "v.npy")
    table = tiles_of(volume, preprocess, 16)
    plain = chunk_reads(plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64))
    assert plain.in_words() == "The source is read directly; nothing is decoded."


# --- the whole command --------------------------------------------------------------------------------------


def test_a_whole_encode_decodes_each_chunk_once_and_the_memory_changes_no_byte(tmp_path: Path) -> None:
    source(tmp_path / "a", (104, 100, 100), (100, 30, 60))
    wishes = {"overlap": 16, "shard_tiles": 64, "z_range": "97:103"}
    with counted() as count:
        count[0] = 0
        plenty = quick(tmp_path / "a", store=tmp_path / "plenty.zarr", **wishes)
        assert count[0] == 2 * 4 * 2  # the look at its identity included
        little = quick(tmp_path / "a", store=tmp_path / "little.zarr", read_memory=1 << 16, **wishes)
        assert little.to_dict()["source_chunks_read"] > 2 * 4 * 2
    assert plenty.store.path != little.store.path
    assert shard_digests(plenty.store.path) == shard_digests(little.store.path)


# --- views --------------------------------------------------------------------------------------------------


def with_all_views(table: Table) -> Table:
    return table_of(table, grown((), int(table[:, 0].max()) + 1, range(8)), uniform=True)


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(20, 70), st.integers(20, 70)),
    chunks=st.tuples(st.integers(1, 140), st.integers(9, 80), st.integers(9, 80)),
    overlap=st.integers(0, 15),
    channels=st.sampled_from(["repeat", "adjacent:9", "depth:0-0,0-0,0-0"]),
    shard_tiles=st.sampled_from([64, 20, 130]),
    some=st.integers(1, 7),
)
def test_a_chunk_that_was_decoded_for_one_view_serves_them_all(
    size: Any, chunks: Any, overlap: int, channels: str, shard_tiles: int, some: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, counted() as count:
        source(Path(folder) / "a", size, chunks)
        volume, preprocess = open_volume(Path(folder) / "a"), Preprocess(channels)
        table = tiles_of(volume, preprocess, 32, overlap)
        missing = (table[:, 0] >= 0) & (np.arange(len(table)) * 7919 % 11 < some)
        plain = chunk_reads(plan_reading(volume, preprocess, table, missing, shard_tiles))
        views = with_all_views(table)
        reading = plan_reading(volume, preprocess, views, np.tile(missing, 8), shard_tiles)
        count[0] = 0
        seen = sum(1 for _ in read_all(volume, preprocess, views, reading))
        expected = chunk_reads(reading)
        assert seen == 8 * missing.sum()
        assert count[0] == expected.planned == expected.distinct == plain.distinct
        assert volume.cache.bytes_held == 0


def test_all_views_of_a_column_are_read_before_the_next_column(tmp_path: Path) -> None:
    source(tmp_path / "a", (64, 64, 64), (16, 32, 32))
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("repeat")
    table = with_all_views(tiles_of(volume, preprocess, 32))
    reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
    first = [tuple(table[members[0], [1, 2, 5]].tolist()) for _, members in reading]
    assert [place[:2] for place in first[::8]] == sorted({place[:2] for place in first})
    assert all(len({place[:2] for place in first[at : at + 8]}) == 1 for at in range(0, 32, 8))
    assert sorted(place[2] for place in first[:8]) == list(range(8))


def test_with_too_little_memory_for_the_views_the_plan_says_so_and_every_tile_is_read(tmp_path: Path) -> None:
    source(tmp_path / "a", (128, 64, 64), (16, 32, 32))
    with open_volume(tmp_path / "a", read_memory=40_000) as volume, counted() as count:
        preprocess = Preprocess("repeat")
        table = with_all_views(tiles_of(volume, preprocess, 32))
        reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
        expected = chunk_reads(reading)
        seen = sum(1 for _ in read_all(volume, preprocess, table, reading))
    assert seen == 8 * 128 * 4
    assert expected.distinct == 32 < count[0]
    assert expected.planned > expected.distinct
    with open_volume(tmp_path / "a", read_memory=expected.once_with) as volume, counted() as count:
        reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
        for _ in read_all(volume, preprocess, table, reading):
            pass
        assert count[0] == 32


@pytest.mark.parametrize("workers", [1, 3])
def test_groups_keep_the_views_of_a_place_together(tmp_path: Path, workers: int) -> None:
    source(tmp_path / "a", (128, 64, 64), (64, 32, 32))
    volume, preprocess = open_volume(tmp_path / "a"), Preprocess("repeat")
    table = with_all_views(tiles_of(volume, preprocess, 32))
    missing = table[:, 0] >= 0
    groups = task_groups(
        volume, preprocess, table, missing, 64, memory_bytes=1 << 30, workers=workers
    )  # fmt: skip
    numbers = [number for group in groups for members in group.tiles for number in members]
    assert sorted(numbers) == np.flatnonzero(missing).tolist()
    for group in groups:
        places = {tuple(table[members[0], :3].tolist()) for members in group.tiles}
        assert len(places) <= max(1, -(-len(group.tiles) // 4))


def test_images_are_decoded_once_for_all_their_views(tmp_path: Path) -> None:
    for number, side in enumerate((40, 64, 90)):
        pixels = np.random.default_rng(number).integers(0, 255, (side, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    found = quick(tmp_path, store=tmp_path / "s.zarr", views="flips", shard_tiles=2)
    assert found.encoded == 4 * 4
    assert found.source_chunks_read == 3
    parts = [
        quick(tmp_path, store=tmp_path / "p.zarr", views="flips", shard_tiles=2, num_parts=2, part_id=part)
        for part in range(2)
    ]
    assert sum(part.encoded for part in parts) == 16
    assert shard_digests(tmp_path / "p.zarr") == shard_digests(tmp_path / "s.zarr")
    volume = open_volume(tmp_path)
    groups = task_groups(
        volume,
        Preprocess("repeat"),
        found.store.table,
        found.store.wanted,
        2,
        memory_bytes=1 << 30,
        workers=1,
    )
    assert sorted(n for group in groups for members in group.tiles for n in members) == list(range(16))


def test_all_views_cost_no_more_decodes_than_none_and_as_many_more_encoder_calls(tmp_path: Path) -> None:
    source(tmp_path / "a", (2, 60, 32), (1, 32, 32))
    wishes: dict[str, Any] = {"tile": 32, "overlap": 4, "shard_tiles": 64}
    found = {}
    for name, more in (("none", {}), ("flips", {}), ("little", {"read_memory": 1500})):
        with counted() as count:
            views = "none" if name == "none" else "flips"
            run = quick(tmp_path / "a", store=tmp_path / name, views=views, **wishes, **more)
            found[name] = (run.encoder_calls, count[0])
    assert found["none"] == (4, 4)
    assert found["flips"] == (16, 4)
    assert found["little"][1] > 4
    assert shard_digests(tmp_path / "little") == shard_digests(tmp_path / "flips")
