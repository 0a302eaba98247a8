"""Views in a store: further tiles of the same places, whose numbers, bytes and records are as firm as any."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from disk_faults import InterruptedDisk, refuse
from encode_samples import QUICK, change, quick, scan, shard_digests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from store_samples import DIGEST, IMAGES, embedding, file_bytes, make_store, spec

from embedcache.encode import run_encode
from embedcache.encode.care.against import compare_with
from embedcache.encode.care.fidelity import drawn
from embedcache.encode.care.repair import repair
from embedcache.encode.estimate import estimate
from embedcache.encode.options import EncodeOptions, options_from
from embedcache.encode.plan import EncodePlan
from embedcache.errors import (
    ConfigError,
    CorruptionError,
    InputError,
    Interrupted,
    MismatchError,
    NoTileError,
    StorageError,
)
from embedcache.files import disk as disk_module
from embedcache.geometry import VIEW_SETS, see, see_boxes, see_points, unsee
from embedcache.progress import Silent
from embedcache.store import EmbeddingStore
from embedcache.store.care.diff import diff
from embedcache.store.care.gc import find_garbage
from embedcache.store.care.mend import mend_files
from embedcache.store.care.verify import verify
from embedcache.store.journal import compaction
from embedcache.store.journal.lines import decode_line, encode_line
from embedcache.store.layout import shard_path, tiles_path, write_tiles
from embedcache.store.views import Numbering, Segment, base_rows, grown, read_segments, table_of
from embedcache.volume import Selection, TileGrid, open_volume, select

EVERY = tuple(range(8))
FIXTURES = Path(__file__).parent / "fixtures"


def add(store: EmbeddingStore, *views: int) -> None:
    with store.writer() as writer:
        writer.add_views(views)


def kinds(path: Path) -> list[str]:
    return [str(decode_line(line)["kind"]) for line in path.read_bytes().splitlines()]  # type: ignore[index]


def array(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    np.save(path, np.random.default_rng(seed).integers(1, 250, shape, dtype=np.uint8))
    return path


def by_place(store: EmbeddingStore) -> dict[tuple[Any, ...], bytes]:
    """Every committed embedding by plane's name, corner and view."""
    found = {}
    for number in np.flatnonzero(store.committed).tolist():
        tile = store.tile(number)
        found[store.plane_name(tile.plane), tile.y0, tile.x0, tile.view] = store[number].numpy().tobytes()
    return found


def small_files(root: Path) -> dict[str, bytes]:
    """All files of a store but for its journal."""
    return {name: data for name, data in file_bytes(root).items() if not name.startswith("journal")}


# --- numbers ------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sets(st.integers(0, 7), max_size=3)), min_size=1, max_size=4
    ),
    sides=st.lists(st.tuples(st.integers(16, 80), st.integers(16, 80)), min_size=12, max_size=12),
)
def test_numbers_of_a_collection_never_change_and_every_place_has_each_view_once(steps, sides):
    segments, planes, views, before = (), 1, {0}, None
    grid = TileGrid(32)
    for more, wanted in steps:
        planes, views = planes + more, views | wanted
        segments = grown(segments, planes, wanted)
        table = table_of(grid.table_images(sides[:planes]), segments, uniform=False)
        if before is not None:
            assert np.array_equal(table[: len(before), :5], before[:, :5])
        before = table
        numbering = Numbering(Path("s"), table, segments, False)
        assert set(numbering.views) == views
        assert np.array_equal(base_rows(table, segments, uniform=False), grid.table_images(sides[:planes]))
        assert np.array_equal(table[numbering.base_of, :5], table[:, :5])
        assert numbering.base[numbering.base_of].all()
        for base in np.flatnonzero(numbering.base):
            there = numbering.at_place_of(int(base))
            assert sorted(numbering.view_of[there].tolist()) == sorted(views)
        if segments:
            assert read_segments([segment.values for segment in segments]) == segments


@pytest.mark.parametrize("planes", [1, 64, 70])
def test_a_view_of_an_arrays_tile_has_its_number_and_so_many_bases_more(planes):
    base = TileGrid(32).table_uniform(planes, 40, 64)
    segments = grown((), planes, VIEW_SETS["d4"])
    numbering = Numbering(Path("s"), table_of(base, segments, uniform=True), segments, True)
    for place, segment in enumerate(segments):
        rows = slice(place * len(base), (place + 1) * len(base))
        there = base[:, 0] >= 0
        assert np.array_equal(numbering.table[rows, :5], base)
        assert np.all(numbering.view_of[rows][there] == segment.view)
        assert np.array_equal(numbering.base_of[rows], np.arange(len(base)))
    assert np.array_equal(np.flatnonzero(numbering.base), np.flatnonzero(base[:, 0] >= 0))
    assert numbering.at_place_of(5).tolist() == [5 + len(base) * place for place in range(8)]


@pytest.mark.parametrize("values", [[[0, 0, 3], [0, 3, 5]], [[0, 0, 5], [4, 0, 3]], [[0, 0, 5], [4, 0, 5]]])
def test_segments_that_no_array_has_are_corruption(values):
    table = np.zeros((5 * len(values) + (values[-1] == [4, 0, 5]), 6), np.int64)
    numbering = Numbering(Path("s"), table, read_segments(values), True)
    with pytest.raises(CorruptionError, match="has not the rows"):
        numbering.at_place_of(0)
    with pytest.raises(CorruptionError, match="has not the rows"):
        _ = numbering.base_of


def test_flips_and_then_all_are_numbered_as_all_at_once():
    assert grown(grown((), 3, VIEW_SETS["flips"]), 3, VIEW_SETS["d4"]) == grown((), 3, VIEW_SETS["d4"])
    assert grown((), 3, VIEW_SETS["none"]) == ()


@pytest.mark.parametrize(
    "values",
    [
        [[8, 0, 1]],
        [[0, 1, 2]],
        [[0, 0, 2], [3, 1, 2]],
        [[0, 0, 2], [3, 0, 3]],
        [[0, 0, -1]],
        [[0, 0]],
        [["0", 0, 1]],
        [[0, 0, 2], [0, 0, 2]],
        [[0, 0, 2], [4, 0, 0]],
        7,
    ],
)
def test_segments_that_cannot_be_are_refused(values):
    with pytest.raises((ValueError, TypeError)):
        read_segments(values)


# --- what stands on disk ------------------------------------------------------------------------------------


def test_a_store_that_nobody_gave_views_has_five_columns_and_no_word_of_them(tmp_path):
    store = make_store(tmp_path / "s")
    before = file_bytes(store.path)
    add(store, 0)
    assert file_bytes(store.path) == before
    assert store.table.shape == (5, 5)
    assert (store.views, store.views_of(3), store.base.sum()) == ((0,), {}, 5)
    assert "views" not in kinds(store.path / "journal" / "created.jsonl")


def test_views_are_announced_before_the_table_so_that_older_versions_stop_at_their_kind(
    tmp_path, monkeypatch
):
    store = make_store(tmp_path / "s")
    add(store, 4)
    created, main = (store.path / "journal" / name for name in ("created.jsonl", "main.jsonl"))
    assert kinds(created) == ["store", "views", "table"]
    assert kinds(main) == ["views"]
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    with store.writer() as writer:
        writer.add_views([2])
    assert kinds(created) == ["store", "views", "snapshot"]
    again = EmbeddingStore.open(store.path)
    assert again.views == (0, 2, 4)
    assert again.state.segments == (Segment(0, 0, 5), Segment(4, 0, 5), Segment(2, 0, 5))
    assert verify(store.path).problems == ()


def test_a_repeated_wish_for_views_writes_nothing(tmp_path):
    store = make_store(tmp_path / "s")
    add(store, 4, 6)
    before = file_bytes(store.path)
    add(store, 4)
    assert file_bytes(store.path) == before


def test_other_readers_of_zarr_see_six_columns(tmp_path):
    store = make_store(tmp_path / "s")
    add(store, *EVERY)
    expected = np.array(store.table)
    opened = zarr.open_group(store.path, mode="r")["tiles"]
    assert np.array_equal(opened[:], expected)
    assert list(opened.attrs["columns"]) == ["plane", "y0", "x0", "height", "width", "view"]
    kept = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / "tiles")}}
    assert np.array_equal(tensorstore.open(kept).result().read().result(), expected)
    assert expected.shape == (40, 6)


def test_views_of_are_those_that_are_committed(tmp_path):
    store = make_store(tmp_path / "s")
    add(store, 4, 1)
    with store.writer() as writer:
        writer.commit_shard(1, embeddings={2: embedding(2)}, input_digests={2: DIGEST})
        writer.commit_shard(6, embeddings={12: embedding(12)}, input_digests={12: DIGEST})
    assert store.view_of[[2, 7, 12]].tolist() == [0, 4, 1]
    assert store.base_of([2, 7, 12]).tolist() == [2, 2, 2]
    assert store.views_of(2) == {0: 2, 1: 12}
    assert store.views_of(3) == {}
    assert store.tile(12).view == 1
    assert store.describe(12).endswith("view 1)")
    assert store.status().views == [0, 1, 4]
    with pytest.raises(NoTileError):
        store.views_of(15)


def test_images_that_come_later_get_their_rows_then_their_views_at_the_end(tmp_path):
    grid = TileGrid(32)
    changes = {"spec": spec(volume={"kind": "images"}, grid=grid), "images": IMAGES[:2]}
    sizes = [(32, 40)] * 4
    store = make_store(tmp_path / "s", table=grid.table_images(sizes[:2]), **changes)
    add(store, 4)
    first = np.array(store.table)
    segments = grown(store.state.segments, 4, ())
    whole = table_of(grid.table_images(sizes), segments, uniform=False)
    with store.writer() as writer:
        writer.add_images(IMAGES, whole[:12])
        assert store.views == (0, 4)
        writer.add_views([])
    assert np.array_equal(store.table[: len(first)], first)
    assert np.array_equal(store.table, whole)
    assert store.table[:, 5].tolist() == [0] * 4 + [4] * 4 + [0] * 4 + [4] * 4
    assert store.base_of([9, 13]).tolist() == [9, 9]
    again = EmbeddingStore.open(store.path)
    assert np.array_equal(again.table, whole)
    assert verify(store.path).problems == ()


@pytest.mark.parametrize(("tiles", "every"), [(5, 1), (4099, 4)])
def test_interrupted_at_any_step_the_store_is_the_old_or_the_new_one_and_the_next_writer_finishes(
    tmp_path, tiles, every
):
    make_store(tmp_path / "s", tiles)
    undisturbed = EmbeddingStore.open(shutil.copytree(tmp_path / "s", tmp_path / "u"))
    add(undisturbed, 4)
    old, new = EmbeddingStore.open(tmp_path / "s").table, undisturbed.table
    interrupted = 0
    for step in range(1, 200, every):
        root = Path(shutil.copytree(tmp_path / "s", tmp_path / f"s{step}"))
        store, disk = EmbeddingStore.open(root), InterruptedDisk(step, refuse)
        disk_module.set_disk(disk)
        try:
            add(store, 4)
        except StorageError:
            interrupted += 1
        finally:
            disk_module.set_disk(disk_module.Disk())
        if disk.left > 0:
            break
        found = EmbeddingStore.open(root)
        assert np.array_equal(found.table, new if found.state.segments else old)
        assert verify(root).problems == ()
        with found.writer():
            pass  # the next writer takes back or completes what was begun
        assert np.array_equal(zarr.open_group(root, mode="r")["tiles"][:], found.table)
        add(found, 4)
        assert small_files(root) == small_files(undisturbed.path)
        shutil.rmtree(root)
    assert interrupted > 10 // every


def test_writers_of_other_shards_go_on_while_one_of_them_adds_views(tmp_path):
    first = make_store(tmp_path / "s")
    second = EmbeddingStore.open(first.path)
    with first.writer(range(0, 1)) as one, second.writer(range(1, 2)) as two:
        one.commit_shard(0, embeddings={0: embedding(0)}, input_digests={0: DIGEST})
        two.add_views([4])
        two.commit_shard(1, embeddings={2: embedding(2)}, input_digests={2: DIGEST})
        one.commit_shard(0, embeddings={1: embedding(1)}, input_digests={1: DIGEST})
        one.add_selection({}, np.ones(10, np.bool_))
        assert first.views == (0, 4)
    again = EmbeddingStore.open(first.path)
    assert np.flatnonzero(again.committed).tolist() == [0, 1, 2]
    assert verify(first.path).problems == ()


def test_a_reader_that_was_there_before_sees_the_views_when_it_looks_again(tmp_path):
    store = make_store(tmp_path / "s")
    reader = EmbeddingStore.open(store.path)
    add(store, 4)
    assert (len(reader), reader.views) == (5, (0,))
    reader.refresh()
    assert (len(reader), reader.views) == (10, (0, 4))


@pytest.mark.parametrize("archive", sorted(FIXTURES.glob("*.tar.xz")), ids=lambda path: path.name)
def test_every_store_that_was_ever_written_can_be_given_views(tmp_path, archive):
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    store = EmbeddingStore.open(next(path.parent.parent for path in tmp_path.rglob("created.jsonl")))
    known, table = by_place(store), np.array(store.table)
    add(store, 2)
    again = EmbeddingStore.open(store.path)
    assert 2 in again.views
    assert np.array_equal(again.table[: len(table), : table.shape[1]], table)
    assert by_place(again) == known
    assert verify(store.path).problems == ()
    assert "views" in kinds(store.path / "journal" / "created.jsonl")[:2]


def test_more_tiles_than_a_store_may_have_and_views_that_are_none_are_refused(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s")
    before = file_bytes(store.path)
    with store.writer() as writer:
        with pytest.raises(InputError, match="no view 8"):
            writer.add_views([8])
        monkeypatch.setattr("embedcache.store.adding.TILES_LIMIT", 10)
        with pytest.raises(InputError, match="more tiles than"):
            writer.add_views([4])
    assert file_bytes(store.path) == before


def test_a_journal_that_claims_rows_that_are_not_there_is_refused_before_memory_is_taken(tmp_path):
    store = make_store(tmp_path / "s")
    add(store, 4)
    main = store.path / "journal" / "main.jsonl"
    record = {
        "kind": "views",
        "tiles": 2_000_000_000,
        "segments": [[0, 0, 5], [4, 0, 5], [1, 0, 5]],
        "seq": 9,
    }
    main.write_text(main.read_text() + encode_line(record) + "\n")
    with pytest.raises(CorruptionError, match="2,000,000,000 tiles"):
        EmbeddingStore.open(store.path)


# --- encoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "views", "wishes"),
    [
        ((1, 64, 40), EVERY[1:], {"tile": "full"}),
        ((3, 70, 60), (5,), {"tile": 64, "overlap": 8, "channels": "adjacent:1"}),
        ((1, 64, 48), (3, 6), {"tile": "full", "store_dtype": "int8"}),
    ],
)
def test_encoding_a_view_is_encoding_the_moved_pixels_bit_for_bit(tmp_path, shape, views, wishes):
    volume = array(tmp_path / "a.npy", shape)
    store = quick(volume, store=tmp_path / "s.zarr", views="d4", **wishes).store
    pixels = np.load(volume)
    for view in views:
        np.save(tmp_path / "moved.npy", see(pixels, view))
        moved = quick(tmp_path / "moved.npy", store=tmp_path / f"{view}.zarr", **wishes).store
        for base in np.flatnonzero(store.base).tolist():
            tile, number = store.tile(base), store.views_of(base)[view]
            marks = np.zeros(pixels.shape[1:])
            marks[tile.slices] = 1
            rows, columns = np.nonzero(see(marks, view))
            corner = (tile.plane, rows.min(), columns.min())
            same = np.flatnonzero((moved.table[:, :3] == corner).all(axis=1))
            assert moved.record(int(same[0])).input_digest == store.record(number).input_digest
            assert np.array_equal(store[number].numpy(), moved[int(same[0])].numpy())


def test_colour_images_are_moved_as_pictures(tmp_path):
    (tmp_path / "f").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "f" / "a.png")
    store = quick(tmp_path / "f", store=tmp_path / "s.zarr", views="d4").store
    (tmp_path / "g").mkdir()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels[:, ::-1]))).save(tmp_path / "g" / "a.png")
    moved = quick(tmp_path / "g", store=tmp_path / "m.zarr").store
    assert np.array_equal(store[store.views_of(0)[5]].numpy(), moved[0].numpy())


def test_views_added_later_are_all_that_is_encoded_and_a_repeat_encodes_nothing(tmp_path):
    volume = scan(tmp_path / "a.npy")
    whole = quick(volume, store=tmp_path / "whole.zarr", views="d4")
    assert (whole.encoded, whole.selected) == (48, 48)
    first = quick(volume, store=tmp_path / "s.zarr", z_range="1:4")
    table, before = np.array(first.store.table), by_place(first.store)
    flips = quick(volume, store=tmp_path / "s.zarr", z_range="1:4", views="flips")
    assert (flips.encoded, flips.reused) == (9, 3)
    assert np.array_equal(flips.store.table[: len(table), :5], table)
    assert before.items() <= by_place(flips.store).items()
    some = quick(volume, store=tmp_path / "s.zarr", z_range="1:4", views="d4")
    assert (some.encoded, some.reused) == (12, 12)
    wider = quick(volume, store=tmp_path / "s.zarr", views="d4")
    assert wider.encoded == 24
    again = quick(volume, store=tmp_path / "s.zarr", views="d4")
    assert (again.encoded, again.encoder_calls) == (0, 0)
    base = quick(volume, store=tmp_path / "s.zarr")
    assert (base.selected, base.encoded) == (6, 0)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")
    assert file_bytes(tmp_path / "s.zarr" / "tiles") == file_bytes(tmp_path / "whole.zarr" / "tiles")
    assert again.store.fingerprint == first.store.fingerprint == whole.store.fingerprint


def test_an_interrupted_run_goes_on_and_ends_with_the_bytes_of_one_undisturbed_run(tmp_path):
    volume = scan(tmp_path / "a.npy")
    quick(volume, store=tmp_path / "whole.zarr", views="flips")
    interruptions = 0
    for _ in range(40):
        asked = Counter[str]()

        def stop(asked: Counter[str] = asked) -> int | None:
            asked["times"] += 1
            return 15 if asked["times"] > 6 else None

        try:
            quick(volume, store=tmp_path / "s.zarr", views="flips", batch_size=2, stop=stop)
        except Interrupted:
            interruptions += 1
        else:
            break
    assert 0 < interruptions < 40
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")


@pytest.mark.parametrize("shard_tiles", [2, 50])
def test_parts_give_the_bytes_of_one_run(tmp_path, shard_tiles):
    volume = scan(tmp_path / "a.npy", planes=7)
    quick(volume, store=tmp_path / "whole.zarr", views="flips", shard_tiles=shard_tiles)
    wishes: dict[str, Any] = {"views": "flips", "num_parts": 3, "shard_tiles": shard_tiles}
    results = [quick(volume, store=tmp_path / "s.zarr", part_id=part, **wishes) for part in (2, 0, 1)]
    assert sum(result.encoded for result in results) == 28
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")


def test_images_added_to_a_store_with_views_get_them_too(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for number, (name, side) in enumerate((("b", 64), ("a", 100), ("c", 64))):
        pixels = np.random.default_rng(number).integers(0, 255, (side, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        found = quick(folder, store=tmp_path / "s.zarr", views="flips")
        assert found.encoded == (8 if name == "a" else 4)
    whole = quick(folder, store=tmp_path / "whole.zarr", views="flips").store
    assert by_place(found.store) == by_place(whole)
    assert diff(found.store, whole).same
    assert verify(tmp_path / "s.zarr").problems == ()
    quick(folder, store=tmp_path / "n.zarr")
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(folder / "d.png")
    mixed = quick(folder, store=tmp_path / "n.zarr", views="flips").store
    assert mixed.state.segments == tuple(Segment(view, 0, 4) for view in VIEW_SETS["flips"])
    later = quick(folder, store=tmp_path / "s.zarr").store
    assert later.views_of(int(np.flatnonzero(later.base)[-1])).keys() == {0}


def test_changed_pixels_make_all_views_of_their_tiles_stale(tmp_path):
    volume = scan(tmp_path / "a.npy")
    quick(volume, store=tmp_path / "s.zarr", views="flips")
    change(volume, 2)
    with pytest.raises(MismatchError):
        quick(volume, store=tmp_path / "s.zarr", views="flips")
    result = quick(volume, store=tmp_path / "s.zarr", changed="reencode")
    assert (result.changed, result.encoded) == (4, 4)
    fresh = quick(volume, store=tmp_path / "fresh.zarr", views="flips")
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "fresh.zarr")
    assert not diff(result.store, fresh.store).different


def test_a_changed_image_is_encoded_anew_in_all_its_views(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for number, name in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    quick(folder, store=tmp_path / "s.zarr", views="flips")
    Image.fromarray(255 - pixels).save(folder / "b.png")
    result = quick(folder, store=tmp_path / "s.zarr", changed="reencode", views="d4")
    assert (result.changed, result.encoded) == (4, 4 + 8)
    fresh = quick(folder, store=tmp_path / "fresh.zarr", views="d4").store
    assert by_place(result.store) == by_place(fresh)


def test_equal_pixels_are_encoded_once_whatever_view_they_are_seen_in(tmp_path):
    pixels = np.zeros((3, 64, 64), np.uint8)
    pixels[0] = np.random.default_rng(0).integers(1, 255, (64, 64))
    half = np.random.default_rng(1).integers(1, 255, (64, 32))
    pixels[1] = np.concatenate([half, half[:, ::-1]], axis=1)  # its own mirror image
    np.save(tmp_path / "a.npy", pixels)
    result = quick(tmp_path / "a.npy", store=tmp_path / "s.zarr", views="d4")
    assert (result.encoded, result.encoder_calls, result.identical) == (24, 8 + 4 + 1, 11)


def test_an_empty_tile_that_is_left_out_has_no_views(tmp_path):
    pixels = np.zeros((2, 64, 64), np.uint8)
    pixels[1, 3, 5] = 9
    np.save(tmp_path / "a.npy", pixels)
    result = quick(tmp_path / "a.npy", store=tmp_path / "s.zarr", views="flips", skip_empty=True)
    assert (result.encoded, result.skipped) == (4, 4)
    assert result.store.views_of(0) == {}
    assert len(result.store.views_of(1)) == 4


def test_a_store_with_views_is_verified_mended_and_compacted_like_any(tmp_path, monkeypatch):
    volume = scan(tmp_path / "a.npy", planes=3)
    store = quick(volume, store=tmp_path / "s.zarr", views="flips").store
    table = tiles_path(store.path, 0)
    whole = table.read_bytes()
    swapped = np.array(store.table)
    swapped[:, 5] = swapped[::-1, 5]
    write_tiles(store.path, swapped)
    assert [problem.what for problem in verify(store.path).problems] == ["tile table"]
    mend_files(store.path)
    assert table.read_bytes() == whole
    table.unlink()
    mend_files(store.path)
    assert table.read_bytes() == whole
    (store.path / "tiles" / "zarr.json").unlink()
    mend_files(store.path)
    assert verify(store.path).problems == ()
    known = by_place(store)
    assert find_garbage(store.path) == []
    broken = shard_path(store.path, int(store.views_of(1)[6]) // store.shard_tiles)
    data = bytearray(broken.read_bytes())
    data[1000] ^= 1
    broken.write_bytes(data)
    assert compare_with(store, None, np.flatnonzero(store.committed), Silent()).same
    assert verify(store.path).corrupt == 1
    assert repair(store.path, device="cpu").repaired == 1
    assert by_place(EmbeddingStore.open(store.path)) == known
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    with store.writer():
        pass
    again = EmbeddingStore.open(store.path)
    assert again.state.snapshot is not None
    assert (by_place(again), again.views) == (known, (0, 2, 4, 6))
    assert verify(store.path).problems == ()
    assert quick(volume, store=store.path, views="flips").encoded == 0


@pytest.mark.parametrize("name", ["tiles/zarr.json", "zarr.json"])
@pytest.mark.parametrize("shape", [None, 7, [], "gone"])
def test_damaged_metadata_of_a_store_with_views_is_named_and_mended(tmp_path, name, shape):
    store = make_store(tmp_path / "s")
    add(store, 4)
    path = store.path / name
    whole = path.read_bytes()
    metadata = json.loads(whole)
    array = metadata if name.startswith("tiles") else metadata["consolidated_metadata"]["metadata"]["tiles"]
    array["shape"] = shape
    if shape == "gone":
        del array["shape"]
    path.write_text(json.dumps(metadata))
    assert [(problem.what, problem.where) for problem in verify(store.path).problems] == [
        ("metadata", str(path))
    ]
    mend_files(store.path)
    assert path.read_bytes() == whole


def test_stores_of_other_numbers_are_compared_by_place_and_view(tmp_path):
    volume = scan(tmp_path / "a.npy", planes=3)
    flips = quick(volume, store=tmp_path / "f.zarr", views="flips").store
    none = quick(volume, store=tmp_path / "n.zarr").store
    found = diff(flips, none)
    assert (found.equal, len(found.only_a), found.only_b, found.different) == (3, 9, (), ())
    assert diff(none, flips).only_b == found.only_a


def test_a_plan_counts_what_encode_then_does(tmp_path):
    volume = scan(tmp_path / "a.npy")
    options = options_from(volume, QUICK | {"store": tmp_path / "s.zarr", "views": "flips"})
    planned = estimate(options, Silent())
    assert (planned.tiles_selected, planned.tiles_missing, planned.views) == (24, 24, 4)
    done = quick(volume, store=tmp_path / "s.zarr", views="flips")
    assert done.encoded == planned.tiles_missing
    assert planned.bytes * 1.0 == pytest.approx(done.bytes_written, rel=0.01)


def test_a_plan_without_weights_at_hand_counts_views_too(tmp_path, monkeypatch):
    for name in ("EMBEDCACHE_MODELS", "MICROSAM_CACHEDIR", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    options = EncodeOptions(volume=str(scan(tmp_path / "a.npy")), tile=64, views="d4")
    planned = estimate(options, Silent())
    assert (planned.tiles_selected, planned.views, planned.unknown is None) == (48, 8, False)


def test_a_disk_that_is_too_small_for_the_views_names_fewer_of_them():
    flags = np.ones(800, np.bool_)
    for views, words in ((8, "--views flips"), (4, "--views none"), (1, "--level")):
        plan = EncodePlan(800, flags, flags, 64, views=views)
        with pytest.raises(StorageError) as caught:
            plan.require_space(plan.bytes_needed // 2, "here")
        assert words in (caught.value.hint or "")
        assert views > 1 or "--views" not in (caught.value.hint or "")


def test_a_word_that_names_no_views_is_refused():
    with pytest.raises(ConfigError, match="none, flips, d4"):
        EncodeOptions(volume="a.npy", views="d8")


def test_views_are_no_part_of_the_recipe(tmp_path):
    """A store with views has the identity of one without, and who encodes alike asks for views himself."""
    volume, other = scan(tmp_path / "a.npy", planes=2), scan(tmp_path / "b.npy", planes=2, seed=1)
    viewed = quick(volume, store=tmp_path / "viewed.zarr", views="flips").store
    plain = quick(volume, store=tmp_path / "plain.zarr").store
    assert (viewed.fingerprint, viewed.embedding_space) == (plain.fingerprint, plain.embedding_space)
    assert viewed.provenance["recipe"] == plain.provenance["recipe"]
    assert viewed.spec == plain.spec
    assert options_from(other, {}, viewed).views == "none"
    assert options_from(other, {"views": "d4"}, viewed).views == "d4"
    like = run_encode(
        options_from(other, {"store": tmp_path / "b.zarr", "device": "cpu"}, viewed), Silent(), lambda: None
    )
    assert (like.encoded, like.store.views) == (2, (0,))
    assert like.store.embedding_space == viewed.embedding_space


def test_the_journal_says_which_views_were_wanted(tmp_path):
    store = quick(scan(tmp_path / "a.npy", planes=2), store=tmp_path / "s.zarr", views="flips").store
    lines = (store.path / "journal" / "main.jsonl").read_bytes().splitlines()
    selections = [record for record in map(decode_line, lines) if record and record["kind"] == "selection"]
    assert [record["selection"]["views"] for record in selections] == ["flips"]


@pytest.mark.parametrize("view", EVERY)
def test_the_predictor_of_a_view_is_that_of_the_moved_image(tmp_path, view):
    """Its frame is the view's: a lying tile stands in an odd one, and ``unsee`` brings its masks back."""
    pixels = np.random.default_rng(0).integers(1, 250, (1, 40, 64), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "moved.npy", np.ascontiguousarray(see(pixels, view)))
    viewed = quick(tmp_path / "a.npy", store=tmp_path / "a.zarr", tile="full", views="d4").store
    moved = quick(tmp_path / "moved.npy", store=tmp_path / "moved.zarr", tile="full").store
    with open_volume(tmp_path / "a.npy") as volume, open_volume(tmp_path / "moved.npy") as other:
        found, expected = viewed.predictor(viewed.views_of(0)[view], volume), moved.predictor(0, other)
        assert np.array_equal(found.image, expected.image)
    assert found.original_size == expected.original_size == ((64, 40) if view % 2 else (40, 64))
    assert found.input_size == expected.input_size == ((1024, 640) if view % 2 else (640, 1024))
    point = {"point_coords": see_points([[50, 10]], (40, 64), view), "point_labels": [1]}
    box = {"box": see_boxes([30, 5, 60, 20], (40, 64), view)}
    for prompts in (point, box):
        masks, iou, _ = found.predict(**prompts, return_logits=True)
        others, its_iou, _ = expected.predict(**prompts, return_logits=True)
        assert np.array_equal(masks, others)
        assert np.array_equal(iou, its_iou)
        assert masks.shape[1:] == found.original_size
        assert unsee(masks, view).shape[1:] == (40, 64)


def test_a_selection_and_a_mask_ask_for_base_tiles_only(tmp_path):
    volume = array(tmp_path / "a.npy", (3, 128, 64))
    mask = np.zeros((3, 128, 64), np.uint8)
    mask[1, 100] = 1
    np.save(tmp_path / "m.npy", mask)
    store = quick(volume, store=tmp_path / "s.zarr", views="d4", mask=tmp_path / "m.npy").store
    wanted = np.flatnonzero(store.wanted)
    assert len(wanted) == 8
    assert set(store.base_of(wanted).tolist()) == {64 + 1}
    chosen = select(store.table, Selection(z_range="1:2", bbox="0:1,0:1"), volume=open_volume(volume))
    assert np.flatnonzero(chosen).tolist() == [1]


def test_certificates_are_of_tiles_as_they_lie(tmp_path):
    store = quick(scan(tmp_path / "a.npy", planes=3), store=tmp_path / "s.zarr", views="d4").store
    assert drawn(store, 24, 0).tolist() == [0, 1, 2]
