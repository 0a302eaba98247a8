"""The store: made once, committed in any order, killed anywhere, and never mixed with another."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from disk_faults import InterruptedDisk, refuse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import DECODER, DIGEST, IMAGES, commit, embedding, file_bytes, make_store, spec, table

from embedcache.errors import (
    CorruptionError,
    EmbedcacheError,
    InputError,
    LockedError,
    MismatchError,
    MissingTilesError,
    NoTileError,
    StorageError,
)
from embedcache.files import append_line, sha256_hex
from embedcache.files.disk import set_disk
from embedcache.store import EmbeddingStore
from embedcache.store.creation import refuse_foreign
from embedcache.store.journal.lines import encode_line
from embedcache.store.layout import shard_path
from embedcache.volume.preprocess import Preprocess

# ---- making and opening


def test_a_new_store_opens_with_what_it_was_made_of(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.fingerprint == spec().fingerprint
    assert store.embedding_space == spec().embedding_space
    assert store.provenance == {"source": "made up"}
    assert (len(store), store.shard_tiles, store.n_shards) == (5, 2, 3)
    assert np.array_equal(store.table, table(5))
    assert store.plane_size(3) == (32, 32)
    assert store.plane_name(3) == "z=3"
    assert all(torch.equal(store.decoder_state()[name], DECODER[name]) for name in DECODER)
    assert not store.committed.any()
    assert store.numerics is None


def test_making_a_store_again_opens_it(tmp_path: Path) -> None:
    commit(make_store(tmp_path / "s"), 0)
    assert make_store(tmp_path / "s").committed.tolist() == [True, False, False, False, False]


def test_another_recipe_is_refused_field_by_field_and_nothing_is_touched(tmp_path: Path) -> None:
    commit(make_store(tmp_path / "s"), 0)
    before = file_bytes(tmp_path / "s")
    other = spec(preprocess=Preprocess("repeat", (0.0, 99.0)), precision="bf16")
    with pytest.raises(MismatchError) as caught:
        make_store(tmp_path / "s", spec=other)
    assert set(caught.value.differences) == {"preprocess.window", "precision"}
    assert file_bytes(tmp_path / "s") == before


@pytest.mark.parametrize("prepare", ["missing", "empty", "file", "foreign", "zarr"])
def test_what_is_no_store_is_refused_with_a_reason(tmp_path: Path, prepare: str) -> None:
    path = tmp_path / "s"
    if prepare == "file":
        path.write_text("x")
    elif prepare != "missing":
        path.mkdir()
        if prepare == "foreign":
            (path / "thesis.tex").write_text("x")
        if prepare == "zarr":
            zarr.create_group(path)
    with pytest.raises(InputError, match=str(path)):
        EmbeddingStore.open(path)


def test_a_folder_with_other_things_is_never_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        make_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_embeddings_without_metadata_are_not_overwritten(tmp_path: Path) -> None:
    commit(make_store(tmp_path), 0)
    (tmp_path / "zarr.json").unlink()
    with pytest.raises(CorruptionError, match="missing"):
        make_store(tmp_path)


def change_attributes(path: Path, change: Callable[[dict], object]) -> None:
    metadata = json.loads((path / "zarr.json").read_text())
    change(metadata["attributes"]["embedcache"])
    (path / "zarr.json").write_text(json.dumps(metadata))


def test_a_store_of_a_newer_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make_store(tmp_path)
    change_attributes(tmp_path, lambda values: values.update(format=2, news={"x": 1}))
    with pytest.raises(
        MismatchError, match="store format 2; this version of embedcache reads formats up to 1"
    ):
        EmbeddingStore.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["spec"].update(precision="bf16"),
        lambda values: values.update(format=None),
        lambda values: values.update(shard_tiles=0),
        lambda values: values.update(shard_tiles=10**9),
        lambda values: values.pop("spec"),
        lambda values: values.pop("fingerprint"),
    ],
)
def test_attributes_that_were_tampered_with_are_refused(
    tmp_path: Path, change: Callable[[dict], object]
) -> None:
    make_store(tmp_path)
    change_attributes(tmp_path, change)
    with pytest.raises((InputError, CorruptionError)):
        EmbeddingStore.open(tmp_path)


def test_a_damaged_decoder_is_found(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    data = bytearray((tmp_path / "decoder.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "decoder.safetensors").write_bytes(data)
    with pytest.raises(CorruptionError, match="decoder"):
        store.decoder_state()


def test_a_store_whose_metadata_is_no_json_is_corrupt_and_the_way_out_is_said(tmp_path: Path) -> None:
    make_store(tmp_path)
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(CorruptionError, match="JSON") as caught:
        EmbeddingStore.open(tmp_path)
    assert f"embedcache repair {tmp_path}" in str(caught.value)


def test_a_journal_without_its_first_file_is_corrupt_not_empty(tmp_path: Path) -> None:
    make_store(tmp_path)
    (tmp_path / "journal" / "created.jsonl").unlink()
    with pytest.raises(CorruptionError, match=r"created\.jsonl is missing"):
        EmbeddingStore.open(tmp_path)


@pytest.mark.parametrize("name", ["zarr.json", "created.jsonl", "0", "decoder.safetensors"])
def test_a_file_that_may_not_be_read_is_a_refusal_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_store(tmp_path)
    real = os.open

    def refuse(path: object, *rest: object, **options: object) -> int:
        if str(path) == name:
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=rf"Cannot read .*{name}: Permission denied") as caught:
        EmbeddingStore.open(tmp_path).decoder_state()
    assert "owner and mode" in str(caught.value)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"kind": "table", "seq": 9}, CorruptionError),
        ({"kind": "table", "seq": 9, "tiles": 2**62, "images": []}, CorruptionError),
        ({"kind": "table", "seq": 9, "tiles": 5, "images": [3]}, CorruptionError),
        ({"kind": "selection", "seq": 9, "wanted": 3}, CorruptionError),
        ({"kind": "shard", "seq": 9, "shard": 10**9}, CorruptionError),
        ({"kind": "selection", "seq": 2**70, "wanted": {"count": 2**70, "bits": ""}}, CorruptionError),
        ({"kind": "numerics"}, CorruptionError),
        ({"kind": "moon", "seq": 9}, MismatchError),
    ],
)
def test_a_journal_that_makes_no_sense_is_refused(
    tmp_path: Path, record: dict, error: type[Exception]
) -> None:
    make_store(tmp_path)
    append_line(tmp_path / "journal" / "main.jsonl", encode_line(record))
    with pytest.raises(error):
        EmbeddingStore.open(tmp_path)


def change_store(path: Path, change: Callable[[dict], object]) -> None:
    """Change what both the group's attributes and the journal say of the store."""
    change_attributes(path, change)
    lines = (path / "journal" / "created.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    record.pop("crc32c")
    change(record["attributes"])
    lines[0] = encode_line(record)
    (path / "journal" / "created.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("value", [None, 3])
def test_attributes_without_the_decoders_digest_are_refused(tmp_path: Path, value: object) -> None:
    make_store(tmp_path)
    change_store(tmp_path, lambda values: values.update(decoder_sha256=value))
    with pytest.raises(InputError, match="decoder_sha256"):
        EmbeddingStore.open(tmp_path)


def test_a_decoder_of_the_recorded_digest_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "decoder.safetensors").write_bytes(b"junk")
    change_store(tmp_path, lambda values: values.update(decoder_sha256=sha256_hex(b"junk")))
    with pytest.raises(CorruptionError, match="cannot be read"):
        EmbeddingStore.open(tmp_path).decoder_state()
    (tmp_path / "decoder.safetensors").unlink()
    with pytest.raises(CorruptionError, match="missing"):
        store.decoder_state()


def test_metadata_of_a_folder_that_is_no_store_is_wrong_input_not_damage(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        EmbeddingStore.open(tmp_path)


@pytest.mark.parametrize("tiles", [0, 5000])
def test_shards_of_no_size_are_refused_at_once(tmp_path: Path, tiles: int) -> None:
    with pytest.raises(InputError, match=str(tiles)):
        make_store(tmp_path / "s", shard_tiles=tiles)
    assert not (tmp_path / "s").exists()


def test_a_place_for_a_store_that_cannot_be_used_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        make_store(tmp_path / "file")
    with pytest.raises(StorageError):
        make_store(tmp_path / "file" / "s")

    def refuse(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "folder").mkdir()
    for name in ("exists", "iterdir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            with pytest.raises(StorageError, match="Cannot read"):
                make_store(tmp_path / "folder")
    monkeypatch.setattr("embedcache.store.creation.make_folder", refuse)
    with pytest.raises(StorageError, match="Cannot write"):
        make_store(tmp_path / "folder")


def test_a_store_that_appears_while_it_is_made_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that grants a lock twice, the exclusive creation of the group decides."""

    def taken(path: Path, data: bytes) -> None:
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr("embedcache.store.creation.create_file", taken)
    with pytest.raises(LockedError, match="same moment"):
        make_store(tmp_path / "s")


def test_a_store_whose_making_was_interrupted_says_so(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    (tmp_path / "s" / "zarr.json").unlink()
    with pytest.raises(InputError, match="interrupted"):
        EmbeddingStore.open(tmp_path / "s")
    assert not make_store(tmp_path / "s").committed.any()


def test_a_number_without_a_tile_is_said_to_be_one(tmp_path: Path) -> None:
    rows = table(4)
    rows[2] = -1
    store = make_store(tmp_path, table=rows)
    assert store.tile(3).plane == 3
    assert "without a tile" in store.describe(2)
    for number, why in ((2, "gaps"), (-1, "begin at 0"), (4, "end at 3")):
        for ask in (store.tile, store.__getitem__):
            with pytest.raises(NoTileError, match=why) as refusal:
                ask(number)
            assert "3 of 4 have one: 0, 1, 3." in refusal.value.message
            assert "np.flatnonzero(store.committed)" in str(refusal.value.hint)


def test_without_views_every_tile_is_its_own_base(tmp_path: Path) -> None:
    rows = table(4)
    rows[2] = -1
    make = make_store(tmp_path, table=rows)
    commit(make, 0)
    store = EmbeddingStore.open(tmp_path)
    assert store.views == (0,)
    assert store.base.tolist() == [True, True, False, True]
    assert store.view_of.tolist() == [0, 0, 0, 0]
    assert store.base_of([3, 0]).tolist() == [3, 0]
    assert (store.views_of(0), store.views_of(1)) == ({0: 0}, {})
    assert store.tile(3).view == 0
    with pytest.raises(NoTileError):
        store.views_of(2)


@pytest.mark.parametrize("shape", [(6,), (5, 1), ()])
def test_wanted_of_tiles_that_are_not_there_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store = make_store(tmp_path)
    with store.writer() as writer, pytest.raises(InputError, match="tile numbers"):
        writer.add_selection({}, np.ones(shape, np.bool_))


def test_tiles_behind_the_end_of_a_shorter_selection_are_not_wanted(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.writer() as writer:
        writer.add_selection({}, np.ones(3, np.bool_))
    assert EmbeddingStore.open(tmp_path).missing.tolist() == [True, True, True, False, False]


def test_what_is_there_can_be_iterated_and_shown(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    commit(store, 3)
    assert [values.half().numpy()[1, 0, 0] for values in store] == [
        embedding(0)[1, 0, 0],
        embedding(3)[1, 0, 0],
    ]
    assert "2 of 5" in repr(store)


# ---- what other readers see


def test_zarr_and_tensorstore_read_every_value_and_nan_where_nothing_is(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=7, shard_tiles=2)
    commit(store, 1)
    commit(store, 2, 3)
    commit(store, 6)
    expected = np.full((7, 256, 64, 64), np.nan, np.float16)
    for tile in (1, 2, 3, 6):
        expected[tile] = embedding(tile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path, mode="r")
        assert {name for name, _ in group.members(max_depth=None)} == {"image_embeddings", "tiles"}
        assert np.array_equal(group["image_embeddings"][:], expected, equal_nan=True)
        assert np.array_equal(group["tiles"][:], table(7))
        alone = zarr.open_array(tmp_path / "image_embeddings", mode="r")
        assert np.array_equal(alone[1:4], expected[1:4], equal_nan=True)
    for name, values in (("image_embeddings", expected), ("tiles", table(7))):
        kvstore = {"driver": "file", "path": str(tmp_path / name)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        assert opened.dtype.numpy_dtype == values.dtype
        assert np.array_equal(opened.read().result(), values, equal_nan=True)


def test_other_readers_see_added_images(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=3, images=IMAGES[:3])
    commit(store, 2)
    with store.writer() as writer:
        writer.add_images(IMAGES, table(4))
        writer.commit_shard(1, embeddings={3: embedding(3)}, input_digests={3: DIGEST})
    array = zarr.open_group(tmp_path, mode="r")["image_embeddings"]
    assert array.shape == (4, 256, 64, 64)
    assert np.array_equal(array[2:4], np.stack([embedding(2), embedding(3)]))
    kvstore = {"driver": "file", "path": str(tmp_path / "image_embeddings")}
    assert tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().shape[0] == 4


# ---- committing


def test_the_bytes_of_a_shard_do_not_depend_on_its_history(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole", n=3, shard_tiles=3)
    commit(whole, 0, 1, 2)
    expected = shard_path(whole.path, 0).read_bytes()

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(3)), cuts=st.sets(st.integers(1, 2)), wrong=st.booleans())
    def check(order: list[int], cuts: set[int], wrong: bool) -> None:
        shutil.rmtree(tmp_path / "parts", ignore_errors=True)
        store = make_store(tmp_path / "parts", n=3, shard_tiles=3)
        if wrong:
            commit(store, order[0], seed=50)
        for part in np.split(np.array(order), sorted(cuts)):
            commit(store, *part.tolist())
        assert shard_path(store.path, 0).read_bytes() == expected
        assert all((store[tile].numpy() == embedding(tile)).all() for tile in range(3))

    check()


def test_a_record_says_what_was_stored(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 3)
    record = EmbeddingStore.open(tmp_path).record(3)
    values = embedding(3)
    assert (record.minimum, record.maximum) == (values.min(), values.max())
    assert record.input_digest == DIGEST
    with pytest.raises(MissingTilesError):
        store.record(2)


def test_skipped_and_failed_tiles_are_remembered_without_a_file(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, skipped={2: "empty"}, failed={3: "not finite"})
    for seen in (store, EmbeddingStore.open(tmp_path)):
        assert seen.skipped.tolist() == [False, False, True, False, False]
        assert seen.failed == {3: "not finite"}
    assert not shard_path(tmp_path, 1).exists()


def test_a_tile_that_failed_and_then_succeeds_is_no_more_failed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.writer() as writer:
        writer.add_selection({"z_range": "0:4"}, np.array([True] * 4 + [False]))
    commit(store, failed={2: "disk", 3: "disk"})
    assert store.missing.tolist() == [True, True, True, True, False]
    commit(store, 2)
    commit(store, 0, skipped={1: "empty"})
    again = EmbeddingStore.open(tmp_path)
    assert again.failed == {3: "disk"}
    assert again.missing.tolist() == [False, False, False, True, False]
    commit(again, 3)
    assert again.status().complete


def test_a_committed_tile_stays_committed_whatever_is_said_of_it(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    before = shard_path(tmp_path, 0).stat().st_mtime_ns
    with store.writer() as writer:
        assert writer.commit_shard(0, embeddings={}, input_digests={}, failed={0: "x"}, skipped={1: "y"}) == 0
    assert store.committed[0]
    assert store.failed == {}
    assert store.skipped[1]
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"embeddings": {0: np.full((256, 64, 64), np.inf, np.float16)}, "input_digests": {0: DIGEST}},
        {"embeddings": {0: np.zeros((256, 64, 64), np.float32)}, "input_digests": {0: DIGEST}},
        {"embeddings": {0: np.zeros((64, 64), np.float16)}, "input_digests": {0: DIGEST}},
        {"embeddings": {0: np.zeros((256, 64, 64), np.float16)}, "input_digests": {}},
        {"embeddings": {2: np.zeros((256, 64, 64), np.float16)}, "input_digests": {2: DIGEST}},
        {"embeddings": {}, "input_digests": {}, "skipped": {0: "x"}, "failed": {0: "y"}},
        {"embeddings": {}, "input_digests": {}, "skipped": {-1: "x"}},
    ],
)
def test_what_cannot_be_right_is_never_recorded(tmp_path: Path, arguments: dict) -> None:
    store = make_store(tmp_path)
    before = file_bytes(tmp_path)
    with store.writer() as writer, pytest.raises(EmbedcacheError):
        writer.commit_shard(0, **arguments)
    after = file_bytes(tmp_path)
    after.pop("journal/writer.lock")
    before.pop("journal/writer.lock")
    assert after == before


def test_zeros_are_data(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    zeros = np.zeros((256, 64, 64), np.float16)
    with store.writer() as writer:
        writer.commit_shard(0, embeddings={0: zeros}, input_digests={0: DIGEST})
    assert EmbeddingStore.open(tmp_path).committed[0]
    assert (store[0] == 0).all()


def test_a_broken_tile_is_never_carried_over(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    damage(shard_path(tmp_path, 0), 1000)
    with pytest.raises(CorruptionError, match="shard 0"):
        commit(store, 1)
    commit(store, 0, 1)
    assert (store[0].numpy() == embedding(0)).all()


def test_a_writer_whose_commit_failed_in_the_middle_may_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    real = os.pwritev

    def stop_at_record(descriptor: int, pieces: list[memoryview], offset: int) -> int:
        if any(b'"kind":"shard"' in bytes(piece) for piece in pieces):
            raise OSError(28, "No space left on device")
        return real(descriptor, pieces, offset)

    with store.writer() as writer:
        monkeypatch.setattr(os, "pwritev", stop_at_record)
        with pytest.raises(StorageError):
            writer.commit_shard(0, embeddings={0: embedding(60)}, input_digests={0: DIGEST})
        monkeypatch.undo()
        writer.commit_shard(0, embeddings={}, input_digests={}, skipped={1: "empty"})
    for seen in (store, EmbeddingStore.open(tmp_path)):
        assert (seen[0].half().numpy() == embedding(60)).all()
        assert seen.skipped[1]
        assert not seen.state.intents


def test_two_processes_that_make_a_store_do_not_take_it_for_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_meanwhile(root: Path) -> None:
        monkeypatch.undo()
        commit(make_store(root), 0)
        refuse_foreign(root)

    monkeypatch.setattr("embedcache.store.store.refuse_foreign", made_meanwhile)
    assert make_store(tmp_path / "s").committed[0]


def test_numerics_are_decided_once(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.writer() as writer:
        assert writer.decide_numerics({"threads": 1, "batch": 4}) == {"threads": 1, "batch": 4}
    again = EmbeddingStore.open(tmp_path)
    assert again.numerics == {"threads": 1, "batch": 4}
    with again.writer() as writer:
        writer.decide_numerics({"threads": 1, "batch": 4})
        with pytest.raises(MismatchError) as caught:
            writer.decide_numerics({"threads": 2, "batch": 4})
        assert caught.value.differences == {"threads": (1, 2)}
        writer.decide_numerics({"threads": 2, "batch": 4}, allow=True)
        writer.commit_shard(0, embeddings={0: embedding(0)}, input_digests={0: DIGEST})
    assert again.numerics == {"threads": 1, "batch": 4}
    record = again.state.shard_record(0)
    assert record is not None
    assert record.numerics == 1
    attributes = zarr.open_group(tmp_path, mode="r").attrs["embedcache"]
    assert [entry["threads"] for entry in attributes["numerics"]] == [1, 2]


def test_what_is_wanted_is_the_union_of_all_selections(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for at in (1, 3, 3):
        with store.writer() as writer:
            writer.add_selection({"z_range": f"{at}:{at + 1}"}, np.arange(5) == at)
    again = EmbeddingStore.open(tmp_path)
    assert again.wanted.tolist() == [False, True, False, True, False]
    assert len(again.state.selections) == 2
    assert again.status().to_dict()["tiles_missing"] == 2


def test_images_are_only_appended(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=2, images=IMAGES[:2])
    with store.writer() as writer:
        with pytest.raises(MismatchError, match="begin"):
            writer.add_images(IMAGES[:3], table(3)[::-1])
        writer.add_images(IMAGES, table(4))
        writer.add_selection({}, np.ones(4, np.bool_))
    again = EmbeddingStore.open(tmp_path)
    assert again.images == tuple(IMAGES)
    assert not again.uniform
    assert again.plane_name(3) == "d.jpg"
    assert again.plane_size(3) == (32, 40)
    assert again.missing.all()


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([IMAGES[0], IMAGES[2], IMAGES[3]], "other images meanwhile"),
        ([IMAGES[2]], "other images meanwhile"),
        ([*IMAGES[:2], IMAGES[2], IMAGES[2]], "twice"),
        ([*IMAGES[:2], IMAGES[0]], "twice"),
    ],
)
def test_images_that_are_not_the_store_s_are_refused(tmp_path: Path, images, match: str) -> None:
    store = make_store(tmp_path, n=2, images=IMAGES[:2])
    with store.writer() as writer, pytest.raises(MismatchError, match=match):
        writer.add_images(images, table(len(images)))
    assert EmbeddingStore.open(tmp_path).images == tuple(IMAGES[:2])


def test_images_that_somebody_else_has_added_meanwhile_are_no_reason_to_refuse(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=4, images=IMAGES)
    before = file_bytes(tmp_path)
    with store.writer() as writer:
        for count in (4, 2):
            writer.add_images(IMAGES[:count], table(count))
    journal = "journal/main.jsonl"
    assert file_bytes(tmp_path).get(journal) == before.get(journal)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.writer(), pytest.raises(LockedError, match=str(tmp_path)):
        EmbeddingStore.open(tmp_path).writer().__enter__()


def test_a_store_may_be_sent_to_another_process(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    again, reader = pickle.loads(pickle.dumps((store, store.reader())))
    assert torch.equal(again[0], reader.read([0])[0])


def test_a_moved_store_works(tmp_path: Path) -> None:
    commit(make_store(tmp_path / "a"), 0)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert (EmbeddingStore.open(tmp_path / "b")[0].numpy() == embedding(0)).all()


def test_a_snapshot_stays_until_refreshed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    other = EmbeddingStore.open(tmp_path)
    commit(store, 0)
    assert not other.committed.any()
    other.refresh()
    assert other.committed[0]


# ---- killed and refused anywhere


def start(path: Path) -> EmbeddingStore:
    return make_store(path, n=2, images=IMAGES[:2])


def add_last_image(store: EmbeddingStore) -> None:
    with store.writer() as writer:
        if len(store) == 2:
            writer.add_images(IMAGES[:3], table(3))


def fail_last_image(store: EmbeddingStore) -> None:
    commit(store, failed={2: "x"})


SCENARIO: list[Callable[[EmbeddingStore], None]] = [
    lambda store: commit(store, 0),
    lambda store: commit(store, 1, seed=70),
    add_last_image,
    fail_last_image,
    lambda store: commit(store, 2),
    lambda store: commit(store, 1),
]


def run_interrupted(path: Path, at: int, act: Callable[[], None]) -> tuple[int, int, bool]:
    """Run the scenario in a child; returns its exit code, how many steps it finished, whether it got so far."""
    done, report = os.pipe()

    def say_and_act() -> None:
        os.write(report, b"!")
        act()

    child = os.fork()
    if child == 0:
        code = 1
        try:
            set_disk(InterruptedDisk(at, say_and_act))
            store = start(path)
            for step in SCENARIO:
                step(store)
                os.write(report, b".")
            code = 0
        except StorageError:
            code = 6
        finally:
            os._exit(code)
    os.close(report)
    _, status = os.waitpid(child, 0)
    said = os.read(done, 100)
    os.close(done)
    return os.waitstatus_to_exitcode(status), said.count(b"."), b"!" in said


def allowed_after(steps: int) -> dict[int, list[np.ndarray]]:
    """Embeddings that must be there after so many finished steps: tile to the values it may have."""
    tiles = {0: [embedding(0)], 1: [embedding(71)], 2: [embedding(2)]}
    if steps >= 5:
        tiles[1].append(embedding(1))  # the replacement may be there, whole, before it was acknowledged
    return {tile: values for tile, values in tiles.items() if steps > {0: 0, 1: 1, 2: 4}[tile]}


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in main memory where there is one; for simulated kills a real disk is only slower."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("kind", "stride"), [("killed", 3), ("disk full", 4)]
)  # `make fault` takes each step
def test_interrupted_at_any_step_nothing_acknowledged_is_lost_and_the_end_is_the_same(
    memory_path: Path, kind: str, stride: int
) -> None:
    whole = start(memory_path / "whole")
    for step in SCENARIO:
        step(whole)
    wanted = comparable(memory_path / "whole")
    act = refuse if kind == "disk full" else lambda: os._exit(9)
    path, at, codes = memory_path / "s", 0, set()
    while True:
        at += stride
        shutil.rmtree(path, ignore_errors=True)
        code, steps, interrupted = run_interrupted(path, at, act)
        codes.add(code)
        assert code in (0, 9, 6), f"step {at}"
        if not interrupted:
            break
        if steps:
            seen = EmbeddingStore.open(path)
            for tile, values in allowed_after(steps).items():
                found = seen[tile].numpy()
                assert any((found == one).all() for one in values), f"step {at}"
            for tile in np.flatnonzero(seen.committed):
                assert np.isfinite(seen[int(tile)].numpy()).all()
        store = start(path)
        for step in SCENARIO[steps:]:
            step(store)
        assert comparable(path) == wanted, f"step {at}"
        assert not list(path.rglob("*.partial"))
        assert not store.state.intents
    assert codes == ({0, 9} if kind == "killed" else {0, 6})
    assert at > 60


def comparable(path: Path) -> dict[str, bytes]:
    """What must be equal in the end: all but the journal, whose records tell the history."""
    return {name: data for name, data in file_bytes(path).items() if not name.startswith("journal/")}


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
