"""repair makes a damaged store what it was, byte for byte, and says what it cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from care_samples import append_record, filled, flip, forge, refuse_to_open, shard, swap
from encode_samples import QUICK, quick
from other_disks import full_disk, watched
from store_samples import file_bytes, make_store, spec

from embedcache.encode import encode
from embedcache.encode.care.repair import RepairResult, repair
from embedcache.errors import CorruptionError, InputError, LockedError, MismatchError, StorageError
from embedcache.store import EmbeddingStore, layout
from embedcache.store.care.mend import mend_decoder, mend_files
from embedcache.store.care.rebuild import rebuild_shard
from embedcache.store.care.verify import verify
from embedcache.store.journal import compaction
from embedcache.store.journal.packing import pack_flags
from embedcache.volume.tiles import TileGrid

LOCKS = "journal/writer.lock"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of 5 planes, two of them equal, and a store of it in each form."""
    folder = tmp_path_factory.mktemp("originals")
    pixels = np.random.default_rng(0).integers(1, 255, (5, 48, 64), np.uint8)
    pixels[1] = pixels[0]
    np.save(folder / "scan.npy", pixels)
    for name in ("float16", "int8"):
        quick(folder / "scan.npy", store=folder / name, store_dtype=name)
    return folder


@pytest.fixture(params=["float16", "int8"])
def store(request: pytest.FixtureRequest, originals: Path, tmp_path: Path) -> EmbeddingStore:
    shutil.copytree(originals / request.param, tmp_path / "s")
    return EmbeddingStore.open(tmp_path / "s")


@pytest.fixture
def half(originals: Path, tmp_path: Path) -> EmbeddingStore:
    """The float16 store."""
    shutil.copytree(originals / "float16", tmp_path / "s")
    return EmbeddingStore.open(tmp_path / "s")


def content(store: EmbeddingStore) -> dict[str, bytes]:
    """All files but the lock and the copies of damaged ones."""
    found = file_bytes(store.path)
    return {name: data for name, data in found.items() if name != LOCKS and ".damaged" not in name}


def mended(store: EmbeddingStore, damage: Callable[[], object], **options: object) -> RepairResult:
    """Damage a store and repair it; every byte must be as it was."""
    before = content(store)
    times = {name: (store.path / name).stat().st_mtime_ns for name in before}
    damage()
    changed = {name for name in before if content(store).get(name) != before[name]}
    assert changed
    assert verify(store.path).exit_code == 4
    result = repair(store.path, device="cpu", **options)  # type: ignore[arg-type]
    assert (result.exit_code, result.unmended) == (0, [])
    assert content(store) == before
    touched = {name for name in before if (store.path / name).stat().st_mtime_ns != times[name]}
    shards = {name.split("/")[2] for name in changed if "/c/" in name}
    own = {name for name in before if "/c/" in name and name.split("/")[2] in shards}
    assert touched <= changed | own  # scales and shard are written together
    assert verify(store.path).exit_code == 0
    return result


def test_a_whole_store_is_not_touched(store: EmbeddingStore) -> None:
    before = content(store)
    result = repair(store.path)
    assert (result.exit_code, result.broken, result.encoded, result.mended) == (0, 0, 0, [])
    assert content(store) == before


# ---- embeddings


def test_a_broken_embedding_is_encoded_again_and_nothing_else(store: EmbeddingStore) -> None:
    result = mended(store, lambda: flip(shard(store, 1), 8 * store.form.chunk_bytes + 77))
    assert (result.checked, result.broken, result.repaired, result.encoded) == (5, 1, 1, 1)
    assert result.to_dict()["tiles_encoded"] == 1


def test_a_missing_shard_is_encoded_again(store: EmbeddingStore) -> None:
    result = mended(store, lambda: shard(store, 1).unlink())
    assert (result.broken, result.repaired, result.encoded) == (2, 2, 2)


def test_identical_tiles_are_encoded_once(store: EmbeddingStore) -> None:
    result = mended(store, lambda: shard(store, 0).unlink())
    assert (result.broken, result.repaired, result.encoded) == (2, 2, 1)


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_cut_shard_loses_only_what_was_cut_off(store: EmbeddingStore, keep: int) -> None:
    path = shard(store, 1)
    size = path.stat().st_size
    result = mended(store, lambda: os.truncate(path, keep if keep >= 0 else size + keep))
    assert result.encoded == (0 if keep == -10 else 2)


def test_a_damaged_index_costs_no_encoding(store: EmbeddingStore) -> None:
    path = shard(store, 1)
    result = mended(store, lambda: flip(path, 8 * (path.stat().st_size - 20)))
    assert (result.broken, result.repaired, result.encoded) == (2, 2, 0)


def test_swapped_shards_are_encoded_again(store: EmbeddingStore) -> None:
    numbers = (1, 0)
    result = mended(store, lambda: swap(shard(store, numbers[0]), shard(store, numbers[1])))
    assert result.encoded == 3


def test_damaged_scales_are_made_again(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "int8", tmp_path / "s")
    store = EmbeddingStore.open(tmp_path / "s")
    path = layout.scales_path(store.path, 1)
    assert mended(store, lambda: flip(path, 40)).encoded == 1
    assert mended(store, lambda: path.unlink()).encoded == 2
    assert mended(store, lambda: flip(path, 8 * (path.stat().st_size - 2))).encoded == 0


def test_many_damages_at_once_are_all_mended(store: EmbeddingStore) -> None:
    def damage() -> None:
        flip(shard(store, 0), 5)
        shard(store, 1).unlink()
        (store.path / "tiles" / "zarr.json").write_text("{")
        flip(store.path / "decoder.safetensors", 800)
        flip(layout.tiles_path(store.path, 0), 9)
        flip(store.path / "journal" / "main.jsonl", 333)

    result = mended(store, damage)
    assert (result.broken, result.repaired, result.encoded) == (4, 4, 3)


def test_the_volume_and_the_checkpoint_may_have_moved(
    half: EmbeddingStore, originals: Path, tmp_path: Path
) -> None:
    shutil.move(originals / "scan.npy", tmp_path / "moved.npy")
    try:
        flip(shard(half, 1), 5)
        result = repair(half.path, device="cpu")
        assert result.exit_code == 4
        assert "z=2" in result.unmended[0]
        assert "embedcache repair" in result.unmended[0]
        assert verify(half.path).corrupt == 1
        result = repair(half.path, volume=str(tmp_path / "moved.npy"), checkpoint="random:0", device="cpu")
        assert (result.exit_code, result.encoded) == (0, 1)
    finally:
        shutil.move(tmp_path / "moved.npy", originals / "scan.npy")


def test_other_weights_are_refused_and_named(half: EmbeddingStore) -> None:
    flip(shard(half, 1), 5)
    result = repair(half.path, checkpoint="random:1", device="cpu")
    assert result.exit_code == 4
    assert "random:1 is not the encoder" in result.unmended[0]


def test_pixels_that_changed_are_never_encoded_into_the_store(
    half: EmbeddingStore, originals: Path, tmp_path: Path
) -> None:
    changed = np.load(originals / "scan.npy")
    changed[2, 0, 0] ^= 1
    np.save(tmp_path / "changed.npy", changed)
    flip(shard(half, 1), 5)
    flip(shard(half, 2), 5)
    with pytest.raises(MismatchError, match="z=2"):
        repair(half.path, volume=str(tmp_path / "changed.npy"), device="cpu")
    assert verify(half.path).problems[0].tiles == (2,)  # tile 4 was mended
    assert verify(half.path).corrupt == 1


def test_embeddings_that_come_out_otherwise_are_recorded_as_such(store: EmbeddingStore) -> None:
    """As on another machine: the record speaks of other bits than encoding gives here."""
    record = store.state.shard_record(1)
    assert record is not None
    shard(store, 1).unlink()
    other = replace(record, crc=record.crc ^ np.uint32(1), digest="sha256:" + "1" * 64)
    append_record(store, other.to_dict(store.shard_tiles))
    intact = content(store)
    result = repair(store.path, device="cpu")
    assert (result.exit_code, result.broken, result.repaired, result.encoded) == (0, 2, 2, 2)
    assert verify(store.path).exit_code == 0
    after = content(store)
    assert {name for name in intact if after[name] != intact[name]} <= {"journal/main.jsonl", "scales/c/1/0"}
    assert after["journal/main.jsonl"].startswith(intact["journal/main.jsonl"])


def test_a_shard_whose_replacement_was_announced_is_mended_to_one_of_the_two(half: EmbeddingStore) -> None:
    record = half.state.shard_record(1)
    assert record is not None
    append_record(half, record.to_dict(half.shard_tiles, kind="intent"))
    flip(shard(half, 1), 5)
    result = repair(half.path, device="cpu")
    assert (result.exit_code, result.encoded) == (0, 1)
    assert not EmbeddingStore.open(half.path).state.intents


def test_a_folder_in_place_of_a_shard_is_named_and_the_rest_is_mended(half: EmbeddingStore) -> None:
    path = shard(half, 1)
    path.unlink()
    path.mkdir()
    flip(shard(half, 2), 5)
    result = repair(half.path, device="cpu")
    assert result.exit_code == 4
    assert str(path) in result.unmended[0]
    assert verify(half.path).shards_checked == 3
    assert [problem.where for problem in verify(half.path).problems] == [str(path)]


def test_a_link_in_place_of_a_shard_is_replaced_and_not_followed(
    half: EmbeddingStore, tmp_path: Path
) -> None:
    path = shard(half, 1)

    def damage() -> None:
        path.rename(tmp_path / "elsewhere")
        flip(tmp_path / "elsewhere", 5)
        path.symlink_to(tmp_path / "elsewhere")

    mended(half, damage)
    assert not path.is_symlink()
    assert (tmp_path / "elsewhere").exists()


def test_no_lock_is_written_through_a_journal_that_is_a_link(half: EmbeddingStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (half.path / "journal").rename(outside)
    (half.path / "journal").symlink_to(outside)
    before = file_bytes(outside)
    with pytest.raises(CorruptionError, match="is a link"):
        repair(half.path)
    assert file_bytes(outside) == before


# ---- the small files


@pytest.mark.parametrize(
    "name", ["zarr.json", "image_embeddings/zarr.json", "tiles/zarr.json", "journal/zarr.json"]
)
@pytest.mark.parametrize("damage", ["missing", "broken", "flipped", "empty"])
def test_metadata_is_rebuilt_from_the_journal(half: EmbeddingStore, name: str, damage: str) -> None:
    path = half.path / name
    result = mended(
        half,
        {
            "missing": path.unlink,
            "broken": lambda: path.write_text('{"a": [[['),
            "flipped": lambda: flip(path, 8 * (path.read_text().index("zarr_format") + 2)),
            "empty": lambda: path.write_bytes(b""),
        }[damage],
    )
    assert [line.split(":")[0] for line in result.mended] == [str(path)]
    assert result.encoded == 0


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_the_table_of_tiles_is_rebuilt_from_the_grid(half: EmbeddingStore, damage: str) -> None:
    path = layout.tiles_path(half.path, 0)
    result = mended(half, path.unlink if damage == "missing" else lambda: flip(path, 99))
    assert "rebuilt from the grid" in result.mended[0]


def test_the_decoder_is_written_again_from_the_checkpoint(half: EmbeddingStore) -> None:
    result = mended(half, lambda: flip(half.path / "decoder.safetensors", 10_000))
    assert "decoder" in result.mended[0]
    (half.path / "decoder.safetensors").unlink()
    result = repair(half.path, checkpoint="random:1")
    assert (result.exit_code, len(result.unmended)) == (4, 1)


@pytest.mark.parametrize("name", ["created.jsonl", "main.jsonl"])
def test_one_flipped_bit_of_the_journal_is_turned_back(half: EmbeddingStore, name: str) -> None:
    path = half.path / "journal" / name
    for bit in np.random.default_rng(1).integers(0, path.stat().st_size * 8, 6).tolist():
        damaged: list[bytes] = []

        def damage(bit: int = bit, damaged: list[bytes] = damaged) -> None:
            flip(path, bit)
            damaged.append(path.read_bytes())

        result = mended(half, damage)
        assert "one flipped bit" in result.mended[0]
        assert damaged[0] in {kept.read_bytes() for kept in path.parent.glob(f"{name}.damaged*")}


@pytest.fixture
def compacted(half: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    """A store whose journal was compacted into a snapshot."""
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    with half.writer():
        pass
    store = EmbeddingStore.open(half.path)
    assert store.state.snapshot is not None
    return store


def test_one_flipped_bit_of_the_snapshot_is_turned_back(compacted: EmbeddingStore) -> None:
    assert compacted.state.snapshot is not None
    path = compacted.state.snapshot.path
    for bit in (0, 4096 * 8 + 5, path.stat().st_size * 8 - 1):
        result = mended(compacted, lambda bit=bit: flip(path, bit % (path.stat().st_size * 8)))
        assert "one flipped bit" in result.mended[0]


def test_worse_damage_of_the_snapshot_is_named(compacted: EmbeddingStore) -> None:
    assert compacted.state.snapshot is not None
    path = compacted.state.snapshot.path
    flip(path, 9)
    flip(path, 99)
    result = repair(compacted.path)
    assert (result.exit_code, result.mended) == (4, [])
    assert path.name in result.unmended[0]
    path.unlink()
    assert path.name in repair(compacted.path).unmended[0]


def test_a_link_in_place_of_a_journal_file_is_named(half: EmbeddingStore, tmp_path: Path) -> None:
    path = half.path / "journal" / "main.jsonl"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    result = repair(half.path)
    assert result.exit_code == 4
    assert "link" in result.unmended[0]


def test_each_damage_of_a_journal_file_is_kept_aside_under_a_name_of_its_own(half: EmbeddingStore) -> None:
    path = half.path / "journal" / "main.jsonl"
    kept = [path.with_name("main.jsonl.damaged"), path.with_name("main.jsonl.damaged.2")]
    for copy, bit in zip(kept, (80, 800), strict=True):
        flip(path, bit)
        damaged = path.read_bytes()
        repair(half.path)
        assert copy.read_bytes() == damaged


def test_worse_damage_of_the_journal_is_kept_aside_and_named(half: EmbeddingStore) -> None:
    path = half.path / "journal" / "main.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"????" + data[104:])
    before = file_bytes(half.path)
    result = repair(half.path)
    assert result.exit_code == 4
    assert "Restore the file" in result.unmended[0]
    after = file_bytes(half.path)
    assert after.pop("journal/main.jsonl.damaged") == path.read_bytes()
    assert {name: data for name, data in after.items() if name != LOCKS} == {
        name: data for name, data in before.items() if name != LOCKS
    }
    repair(half.path)  # once more: one copy is enough
    assert len(list(path.parent.glob("*.damaged*"))) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_lost_journal_is_named(half: EmbeddingStore, whole: bool) -> None:
    (half.path / "journal" / "created.jsonl").unlink()
    if whole:
        shutil.rmtree(half.path / "journal")
    result = repair(half.path)
    assert result.exit_code == 4
    assert any("created.jsonl" in line for line in result.unmended)


# ---- lines of the journal that cannot be mended


def spoil(path: Path, number: int) -> None:
    """Damage a line of a file so that it cannot be mended, though it can still be told what it was."""
    lines = path.read_bytes().split(b"\n")
    line = bytearray(lines[number])
    for place in (-4, -6):
        line[place] ^= 1
    lines[number] = bytes(line)
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize("number", range(5))
def test_exactly_the_broken_line_is_dropped_and_encoding_again_brings_back_what_it_spoke_of(
    half: EmbeddingStore, originals: Path, number: int
) -> None:
    path = half.path / "journal" / "main.jsonl"
    before, numerics = content(half), half.state.numerics
    kind = json.loads(path.read_text().splitlines()[number])["kind"]
    spoil(path, number)
    spoiled = path.read_bytes()
    result = repair(half.path)
    assert (result.exit_code, result.dropped) == (4, [])
    assert f"embedcache repair {half.path} --drop-lines" in result.unmended[0]
    assert path.read_bytes() == spoiled

    result = repair(half.path, drop_lines=True)
    assert (result.exit_code, len(result.dropped)) == (0, 1)
    assert f"line {number + 1} ({kind}" in result.dropped[0]
    assert path.with_name("main.jsonl.damaged").read_bytes() == spoiled
    store = EmbeddingStore.open(half.path)
    assert store.state.numerics == numerics
    assert (store.committed.sum() < 5) == (kind == "shard")
    again = quick(originals / "scan.npy", store=half.path)
    assert (again.encoder_calls > 0) == (kind == "shard")
    after = content(again.store)
    del before["journal/main.jsonl"], after["journal/main.jsonl"]
    assert after == before
    assert verify(half.path).exit_code == 0


@pytest.mark.parametrize("harm", ["copy is gone", "copy is another one"])
def test_numerics_that_nothing_brings_back_are_not_dropped(half: EmbeddingStore, harm: str) -> None:
    path, group = half.path / "journal" / "main.jsonl", half.path / "zarr.json"
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    metadata = json.loads(group.read_text())
    copies = metadata["attributes"]["embedcache"]["numerics"]
    copies.clear() if harm == "copy is gone" else copies.append({"threads": 9})
    group.write_text(json.dumps(metadata))
    spoil(path, kinds.index("numerics"))
    spoiled = path.read_bytes()
    result = repair(half.path, drop_lines=True)
    assert (result.exit_code, result.dropped, path.read_bytes()) == (4, [], spoiled)
    assert "cannot be dropped" in result.unmended[0]


def test_a_line_that_others_depend_on_is_not_dropped(half: EmbeddingStore) -> None:
    changed = {"kind": "changed", "volume": None, "images": [], "fingerprint": half.fingerprint}
    append_record(half, {**changed, "stale": pack_flags(np.zeros(5, np.bool_))})
    main = half.path / "journal" / "main.jsonl"
    spoil(main, len(main.read_bytes().splitlines()) - 1)
    spoil(half.path / "journal" / "created.jsonl", 1)
    before = main.read_bytes()
    result = repair(half.path, drop_lines=True)
    assert (result.exit_code, result.dropped, main.read_bytes()) == (4, [], before)
    assert sum("cannot be" in line for line in result.unmended) == 2


def test_bytes_that_were_changed_with_their_checksums_kept_are_encoded_again_when_asked(
    store: EmbeddingStore,
) -> None:
    before = content(store)
    forge(shard(store, 1), 1000)
    assert repair(store.path).broken == 0
    result = repair(store.path, digests=True, device="cpu")
    assert (result.exit_code, result.repaired) == (0, 2)
    assert content(store) == before


@pytest.mark.parametrize("name", ["tiles/zarr.json", "zarr.json", "journal/main.jsonl"])
def test_a_file_that_we_may_not_read_is_a_refusal_and_is_not_written_anew(
    older: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = content(older)
    with monkeypatch.context() as patch:
        refuse_to_open(patch, f"{older.path.name}/{name}", errno.EACCES)
        with pytest.raises(StorageError, match="Permission denied"):
            repair(older.path)
    assert content(older) == before


def test_a_disk_that_is_full_is_not_taken_for_damage(half: EmbeddingStore) -> None:
    """Whatever is to be written, a refusal is one: StorageError, exit 6."""
    (half.path / "decoder.safetensors").unlink()

    def refuse(step: str, arguments: tuple[Any, ...]) -> None:
        if step == "open_new" and "decoder.safetensors" in arguments[0].name:
            raise full_disk()

    with watched(refuse), pytest.raises(StorageError, match=r"decoder\.safetensors"):
        repair(half.path)


# ---- stores of the first writer, whose journal does not say what they are


@pytest.fixture
def older(tmp_path: Path) -> EmbeddingStore:
    """A store as the first writer of format 1 left it."""
    with tarfile.open(Path(__file__).parent / "fixtures" / "store-format-1-first.tar.xz") as archive:
        archive.extractall(tmp_path / "older", filter="data")
    (found,) = (path.parent for path in (tmp_path / "older").rglob("decoder.safetensors"))
    return EmbeddingStore.open(found)


def test_an_older_store_is_whole_and_left_alone(older: EmbeddingStore) -> None:
    before = content(older)
    assert verify(older.path).exit_code == 0
    assert repair(older.path).exit_code == 0
    assert content(older) == before


def test_what_follows_from_the_rest_of_an_older_store_is_rebuilt(older: EmbeddingStore) -> None:
    before = content(older)
    path = shard(older, int(np.flatnonzero(older.state.shard_bytes)[0]))
    (older.path / "tiles" / "zarr.json").unlink()
    flip(path, 8 * (path.stat().st_size - 1))
    result = repair(older.path)
    assert (result.exit_code, result.encoded, len(result.mended)) == (0, 0, 2)
    assert content(older) == before


def test_the_attributes_of_an_older_store_are_nowhere_else(older: EmbeddingStore) -> None:
    (older.path / "zarr.json").write_text("{")
    result = repair(older.path)
    assert result.exit_code == 4
    assert "does not say what stood in it" in result.unmended[0]


# ---- by itself


def test_a_file_that_cannot_become_the_recorded_one_is_left_as_it_is(store: EmbeddingStore) -> None:
    record = store.state.shard_record(0)
    assert record is not None
    before = content(store)
    assert not rebuild_shard(store, replace(record, digest="sha256:" + "0" * 64), {})
    assert content(store) == before
    assert rebuild_shard(store, record, {})
    assert content(store) == before


def test_a_table_that_no_grid_gives_cannot_be_rebuilt(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")  # its five rows are made up
    assert mend_files(store.path).done == []
    flip(layout.tiles_path(store.path, 0), 9)
    assert "does not say what stood in it" in mend_files(store.path).left[0]


def test_only_the_damaged_part_of_a_table_is_written(tmp_path: Path) -> None:
    rows = TileGrid(32).table_uniform(4160, 32, 32)
    store = make_store(
        tmp_path / "s", table=rows, spec=spec(volume={"shape": [4160, 32, 32]}), shard_tiles=64
    )
    flip(layout.tiles_path(store.path, 1), 9)
    (done,) = mend_files(store.path).done
    assert done.startswith(str(layout.tiles_path(store.path, 1)))
    assert EmbeddingStore.open(store.path).table.shape == (4160, 5)


def test_a_table_of_another_grid_is_rebuilt_although_its_checksum_is_right(tmp_path: Path) -> None:
    rows = TileGrid(32).table_uniform(5, 32, 32)
    store = make_store(tmp_path / "s", table=rows, shard_tiles=64)
    before = content(store)
    layout.write_tiles(store.path, rows[::-1].copy())
    assert len(mend_files(store.path).done) == 1
    assert content(store) == before


def test_another_decoder_is_never_written(half: EmbeddingStore) -> None:
    before = content(half)
    assert not mend_decoder(half, {"mask_decoder.a": torch.zeros(1)})
    assert content(half) == before


def test_too_many_damaged_copies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "s")
    monkeypatch.setattr("embedcache.store.care.mend_journal.COPIES", 1)
    path = store.path / "journal" / "main.jsonl"
    path.with_name("main.jsonl.damaged").write_text("of another day")
    flip(path, 80)
    with pytest.raises(StorageError, match="too many"):
        mend_files(store.path)


# ---- by whom, and when


def test_a_store_that_somebody_writes_is_left_alone(half: EmbeddingStore) -> None:
    flip(shard(half, 1), 5)
    before = content(half)
    with EmbeddingStore.open(half.path).writer(), pytest.raises(LockedError):
        repair(half.path)
    assert {name: data for name, data in content(half).items() if "locks" not in name} == before


def test_what_is_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        repair(tmp_path / "nothing")
    with pytest.raises(InputError):
        repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_weights_that_needs_none_is_mended_without_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    before = content(store)
    (store.path / "zarr.json").unlink()
    (store.path / "image_embeddings" / "c").mkdir()  # something was encoded: it is no half-made store
    assert repair(store.path).exit_code == 0
    assert content(store) == before


@pytest.mark.fault
def test_a_repair_that_is_killed_goes_on_when_run_again(originals: Path, tmp_path: Path) -> None:
    wishes = QUICK | {"model": "vit_tiny"}  # which another process knows as well
    store = encode(originals / "scan.npy", store=tmp_path / "s", **wishes)  # type: ignore[arg-type]
    before = content(store)
    for number in range(3):
        shard(store, number).unlink()
    (store.path / "tiles" / "zarr.json").unlink()
    for delay in (2.0, 3.0):
        command = [sys.executable, "-m", "embedcache", "repair", str(store.path), "--device", "cpu"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
    assert repair(store.path, device="cpu").exit_code == 0
    after = content(store)
    assert {name: data for name, data in after.items() if "locks" not in name} == before
