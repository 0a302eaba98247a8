"""verify finds whatever is not as it was written, accuses nothing that is, and writes nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from care_samples import append_record, filled, filled_int8, flip, refuse_to_open, replace_tiles, shard, swap
from store_samples import commit, embedding, file_bytes, make_store, spec, table

from embedcache.errors import CorruptionError, InputError, MismatchError, StorageError
from embedcache.files import crc32c
from embedcache.store import EmbeddingStore, layout
from embedcache.store.care.verification import Scope
from embedcache.store.care.verify import judge_shard, verify
from embedcache.store.care.verify_files import check_files, expected_table
from embedcache.store.journal.newest import NewestState
from embedcache.store.journal.state import StoreState
from embedcache.volume.tiles import TileGrid
from embedcache.volume.volume import ImageRecord

FORMS = pytest.mark.parametrize("make", [filled, filled_int8])


# ---- what is whole


@FORMS
@pytest.mark.parametrize("digests", [False, True])
def test_a_whole_store_is_found_whole_and_is_not_written(
    tmp_path: Path, make: Callable[..., EmbeddingStore], digests: bool
) -> None:
    make(tmp_path / "s")
    before = file_bytes(tmp_path / "s")
    found = verify(tmp_path / "s", Scope(digests=digests))
    assert (found.checked, found.ok, found.corrupt, found.missing) == (6, 6, 0, 0)
    assert (found.exit_code, found.problems, found.litter, found.complete) == (0, (), (), True)
    assert found.bytes == sum(shard(tmp_path / "s", number).stat().st_size for number in range(2))
    assert found.verified.tolist() == list(range(6))
    assert file_bytes(tmp_path / "s") == before


def test_an_empty_store_is_whole(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    found = verify(tmp_path / "s")
    assert (found.checked, found.exit_code, found.complete) == (0, 0, True)
    assert json.loads(json.dumps(found.to_dict()))["checked"] == 0


def test_identical_tiles_that_share_a_chunk_are_whole_and_broken_together(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n=4, shard_tiles=4)
    with store.writer() as writer:
        same, digest = embedding(1), "11" * 32
        writer.commit_shard(
            0,
            embeddings={0: same, 1: embedding(2), 2: same, 3: embedding(3)},
            input_digests={0: digest, 1: "22" * 32, 2: digest, 3: "33" * 32},
        )
    assert verify(store.path).ok == 4
    flip(shard(store, 0), 999)
    found = verify(store.path)
    assert (found.ok, found.corrupt) == (2, 2)
    assert found.problems[0].tiles == (0, 2)


# ---- damaged bytes


@FORMS
def test_any_flipped_bit_of_a_shard_file_is_found(
    tmp_path: Path, make: Callable[..., EmbeddingStore]
) -> None:
    path = shard(make(tmp_path / "s", n=3), 0)
    bits = np.random.default_rng(0).integers(0, path.stat().st_size * 8, 40).tolist()
    bits += [path.stat().st_size * 8 - 1, path.stat().st_size * 8 - 300]
    for bit in bits:
        flip(path, bit)
        found = verify(tmp_path / "s")
        assert found.exit_code == 4, bit
        assert found.corrupt >= 1, bit
        flip(path, bit)
    assert verify(tmp_path / "s").exit_code == 0


def test_the_tile_of_a_flipped_bit_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    flip(shard(store, 1), 8 * (store.form.chunk_bytes + 5))
    found = verify(store.path)
    assert (found.ok, found.corrupt, found.missing) == (5, 1, 0)
    assert found.problems[0].tiles == (4,)
    assert found.problems[0].where == str(shard(store, 1))
    assert "differ from the checksum behind them" in found.problems[0].reason


def test_a_damaged_checksum_is_told_apart_from_damaged_bytes(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    flip(shard(store, 0), 8 * store.form.payload_bytes)
    assert "its bytes are right" in verify(store.path).problems[0].reason


@pytest.mark.parametrize("kept", [0, 1, 4_000_000, 6_000_000, -1, -60])
def test_a_cut_file_is_found(tmp_path: Path, kept: int) -> None:
    store = filled(tmp_path / "s")
    path = shard(store, 0)
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    found = verify(store.path)
    assert (found.exit_code, found.ok, found.corrupt) == (4, 3, 3)


def test_a_file_with_bytes_behind_its_end_is_found(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    with shard(store, 0).open("ab") as stream:
        stream.write(b"\0")
    assert verify(store.path).corrupt == 3


def test_a_missing_file_is_missing_tiles(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    shard(store, 0).unlink()
    found = verify(store.path)
    assert (found.ok, found.corrupt, found.missing, found.exit_code) == (3, 0, 3, 4)
    assert (found.problems[0].what, found.problems[0].tiles) == ("missing file", (0, 1, 2))
    assert set(found.broken[0].broken) == {0, 1, 2}


@FORMS
def test_swapped_files_are_found_although_every_checksum_in_them_is_right(
    tmp_path: Path, make: Callable[..., EmbeddingStore]
) -> None:
    store = make(tmp_path / "s")
    swap(shard(store, 0), shard(store, 1))
    found = verify(store.path)
    assert found.corrupt == 6
    assert "swapped" in found.problems[0].reason


def test_swapped_chunks_inside_a_file_are_found(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path, size = shard(store, 0), store.form.chunk_bytes
    data = path.read_bytes()
    path.write_bytes(data[size : 2 * size] + data[:size] + data[2 * size :])
    found = verify(store.path)
    assert (found.ok, found.corrupt) == (4, 2)
    assert found.problems[0].tiles == (0, 1)


def test_an_index_that_points_elsewhere_is_found_although_its_checksum_is_right(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path, length = shard(store, 0), 3 * 16
    data = bytearray(path.read_bytes())
    index = bytearray(data[-length - 4 : -4])
    index[:16], index[16:32] = index[16:32], index[:16]
    data[-length - 4 :] = bytes(index) + crc32c(bytes(index)).to_bytes(4, "little")
    path.write_bytes(data)
    found = verify(store.path)
    assert "index" in found.problems[0].reason
    assert found.corrupt == 3


def test_a_link_in_place_of_a_shard_is_told_and_not_followed(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    elsewhere = tmp_path / "elsewhere"
    shard(store, 0).rename(elsewhere)
    shard(store, 0).symlink_to(elsewhere)
    found = verify(store.path)
    assert "link" in found.problems[0].reason
    assert found.corrupt == 3


def test_a_shard_that_the_system_refuses_to_read_is_a_problem_of_that_shard(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    shard(store, 0).unlink()
    shard(store, 0).mkdir()
    found = verify(store.path)
    assert (found.ok, found.corrupt) == (3, 3)


def test_a_shard_that_the_disk_fails_to_give_is_a_problem_of_that_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s")
    refuse_to_open(monkeypatch, "image_embeddings/c/0/0/0/0", errno.EIO)
    found = verify(store.path)
    assert (found.exit_code, found.ok, found.corrupt) == (4, 3, 3)
    assert "Input/output error" in found.problems[0].reason


@pytest.mark.parametrize(
    "ending",
    [
        "image_embeddings/c/1/0/0/0",
        "scales/c/1/0",
        "journal/main.jsonl",
        "journal/created.jsonl",
        "tiles/zarr.json",
        "decoder.safetensors",
        "tiles/c/0/0",
    ],
)
@pytest.mark.parametrize("error", [errno.EACCES, errno.EMFILE])
def test_a_file_that_we_may_not_read_is_a_refusal_and_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, error: int
) -> None:
    store = filled_int8(tmp_path / "s")
    refuse_to_open(monkeypatch, ending, error)
    with pytest.raises(StorageError, match=os.strerror(error)) as caught:
        verify(store.path)
    assert ending in caught.value.message


def test_a_disk_that_fails_while_reading_is_a_problem_of_that_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s")

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    verdict = judge_shard(store, NewestState(store), 0)
    assert "Input/output error" in verdict.wrong[0]


def test_a_file_changed_with_its_checksums_kept_is_found_by_its_digest(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    record = store.state.shard_record(0)
    assert record is not None
    append_record(store, replace(record, digest="sha256:" + "0" * 64).to_dict(store.shard_tiles))
    assert verify(store.path).exit_code == 0
    found = verify(store.path, Scope(digests=True))
    assert "SHA-256" in found.problems[0].reason


# ---- int8


def test_damaged_scales_are_found(tmp_path: Path) -> None:
    store = filled_int8(tmp_path / "s")
    path = layout.scales_path(store.path, 0)
    flip(path, 8 * 1024 + 3)
    found = verify(store.path)
    assert (found.ok, found.corrupt) == (5, 1)
    assert (found.problems[0].what, found.problems[0].tiles) == ("scales", (1,))
    flip(path, 8 * 1024 + 3)
    flip(path, 8 * (path.stat().st_size - 1))
    assert "own checksum" in verify(store.path).problems[0].reason
    path.unlink()
    assert verify(store.path).corrupt == 3


def test_swapped_scales_are_found(tmp_path: Path) -> None:
    store = filled_int8(tmp_path / "s")
    swap(layout.scales_path(store.path, 0), layout.scales_path(store.path, 1))
    assert verify(store.path).corrupt == 6


# ---- the small files


def test_a_damaged_journal_line_is_a_problem_also_where_the_store_does_not_open(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path = store.path / "journal" / "main.jsonl"
    flip(path, 8 * 40)
    found = verify(store.path)
    assert (found.exit_code, found.opened, found.complete) == (4, None, False)
    assert "line 1" in found.problems[0].where
    assert "one flipped bit" in found.problems[0].reason
    assert found.to_dict()["problems"][0]["what"] == "journal"
    data = bytearray(path.read_bytes())
    data[50:60] = b"x" * 10
    path.write_bytes(data)
    assert "more than one bit" in verify(store.path).problems[0].reason


def test_a_torn_last_line_is_no_damage(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path = store.path / "journal" / "main.jsonl"
    with path.open("ab") as stream:
        stream.write(b'{"kind":"sha')
    assert verify(store.path).exit_code == 0


def test_a_flipped_line_break_of_the_last_line_is_damage_and_not_torn(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path = store.path / "journal" / "main.jsonl"
    flip(path, 8 * (path.stat().st_size - 1))
    found = verify(store.path)
    assert (found.exit_code, found.problems[0].what) == (4, "journal")


def test_a_missing_first_journal_file_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    (store.path / "journal" / "created.jsonl").unlink()
    found = verify(store.path)
    assert found.exit_code == 4
    assert any("created.jsonl" in problem.reason for problem in found.problems)


def test_a_journal_file_that_is_a_link_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path = store.path / "journal" / "main.jsonl"
    path.rename(tmp_path / "main.jsonl")
    path.symlink_to(tmp_path / "main.jsonl")
    found = verify(store.path)
    assert found.exit_code == 4
    assert "link" in found.problems[0].reason


@pytest.mark.parametrize(
    "name", ["zarr.json", "image_embeddings/zarr.json", "tiles/zarr.json", "journal/zarr.json"]
)
@pytest.mark.parametrize("damage", ["missing", "broken", "other"])
def test_damaged_metadata_is_a_problem(tmp_path: Path, name: str, damage: str) -> None:
    store = filled(tmp_path / "s")
    path = store.path / name
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_text("{")
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    found = verify(store.path)
    assert found.exit_code == 4
    assert any(name.split("/")[0] in problem.where + problem.reason for problem in found.problems)


def test_a_length_that_is_not_the_journals_is_a_problem_of_an_array(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path = store.path / "image_embeddings" / "zarr.json"
    path.write_text(path.read_text().replace("      6,", "      7,").replace("    6,", "    7,"))
    assert verify(store.path).exit_code == 4


def test_what_a_killed_writer_has_not_copied_yet_is_no_damage(tmp_path: Path) -> None:
    images = [ImageRecord(f"{name}.jpg", 32, 32, name * 64) for name in "abc"]
    rows = table(3)
    store = filled(tmp_path / "s", n=2, table=rows[:2], images=images[:2])
    before = (store.path / "zarr.json").read_bytes()
    with store.writer() as writer:
        writer.decide_numerics({"threads": 1})
        writer.add_images(images, rows)
    (store.path / "zarr.json").write_bytes(before)
    found = verify(store.path)
    assert (found.exit_code, found.problems) == (0, ())
    assert any("behind the journal" in line for line in found.litter)


def test_a_damaged_table_of_tiles_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    path = layout.tiles_path(store.path, 0)
    flip(path, 77)
    found = verify(store.path)
    assert found.exit_code == 4
    assert any("tile table" in problem.reason for problem in found.problems)
    path.unlink()
    assert verify(store.path).exit_code == 4


def test_a_table_damaged_since_the_store_was_opened_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    flip(layout.tiles_path(store.path, 0), 77)
    problems, _ = check_files(store, NewestState(store))
    assert [problem.what for problem in problems] == ["tile table"]


def gridded(path: Path) -> EmbeddingStore:
    """A store whose table is the grid's: 64 numbers, 5 of them tiles."""
    return make_store(path, table=TileGrid(32).table_uniform(5, 32, 32), shard_tiles=64)


def test_a_table_that_is_not_the_grids_is_a_problem_although_its_checksum_is_right(tmp_path: Path) -> None:
    store = gridded(tmp_path / "s")
    commit(store, 0)
    assert verify(store.path).exit_code == 0
    rows = store.table.copy()
    rows[[0, 1]] = rows[[1, 0]]
    layout.write_tiles(store.path, rows)
    found = verify(store.path)
    assert [(problem.what, problem.where) for problem in found.problems] == [
        ("tile table", str(layout.tiles_path(store.path, 0)))
    ]


def test_the_table_of_a_recipe_that_does_not_say_it_is_left_alone() -> None:
    assert expected_table(spec(volume={"kind": "npy"}), [], 5) is None
    assert expected_table(spec(), [], 5) is None
    assert expected_table(spec(volume={"shape": [0, 0, 0]}), [], 5) is None


def test_a_damaged_decoder_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    flip(store.path / "decoder.safetensors", 100)
    found = verify(store.path)
    assert [problem.what for problem in found.problems] == ["decoder"]
    assert found.ok == 6


# ---- litter


def test_what_a_killed_writer_left_is_litter_and_no_damage(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", n=9)
    (store.path / "image_embeddings" / "1.4711.partial").write_bytes(b"x")
    unrecorded = shard(store, 7)
    unrecorded.parent.mkdir(parents=True)
    shutil.copy(shard(store, 0), unrecorded)
    found = verify(store.path)
    assert (found.exit_code, found.ok) == (0, 9)
    partial = store.path / "image_embeddings" / "1.4711.partial"
    assert [line.split(": ")[0] for line in found.litter] == [str(partial)]
    assert [line.split(": ")[0] for line in found.unclaimed] == [str(unrecorded)]


# ---- how much


def test_a_subset_is_drawn_with_a_seed_and_says_that_it_is_one(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", n=8, shard_tiles=1)
    found = verify(store.path, Scope(share=0.25, seed=3))
    assert (found.checked, found.shards_checked, found.shards_total) == (2, 2, 8)
    assert not found.complete
    assert found.verified.tolist() == verify(store.path, Scope(share=0.25, seed=3)).verified.tolist()
    seen = {tuple(verify(store.path, Scope(share=0.25, seed=seed)).verified.tolist()) for seed in range(8)}
    assert len(seen) > 1


def test_without_a_seed_each_time_another_subset_is_taken(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", n=2, shard_tiles=2)
    assert len({verify(store.path).seed for _ in range(4)}) > 1


def test_when_the_time_is_up_no_further_shard_is_begun(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", n=12, shard_tiles=1)
    found = verify(store.path, Scope(seconds=1e-9))
    assert (found.checked, found.shards_total, found.complete, found.exit_code) == (0, 12, False, 0)
    assert verify(store.path, Scope(seconds=60.0)).complete


@pytest.mark.parametrize("scope", [{"share": 0.0}, {"share": 1.5}, {"seconds": 0.0}])
def test_a_scope_that_is_none_is_refused(scope: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Scope(**scope)


# ---- what is no store


def test_what_is_no_store_is_an_error_and_no_damage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        verify(tmp_path / "nothing")
    make_store(tmp_path / "s")
    (tmp_path / "s" / "zarr.json").unlink()
    with pytest.raises(InputError):
        verify(tmp_path / "s")


def test_a_newer_store_is_an_error_and_no_damage(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    append_record(store, {"kind": "news"})
    with pytest.raises(MismatchError, match="newer"):
        verify(store.path)


# ---- while somebody writes


def test_a_shard_that_was_replaced_since_the_snapshot_is_not_accused(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    older = EmbeddingStore.open(store.path)
    replace_tiles(store, 0, seed=50)
    verdict = judge_shard(older, NewestState(older), 0)
    assert verdict.intact
    assert not np.array_equal(verdict.record.crc, older.state.shard_record(0).crc)  # type: ignore[union-attr]


@FORMS
def test_a_shard_whose_replacement_is_announced_may_be_either(
    tmp_path: Path, make: Callable[..., EmbeddingStore]
) -> None:
    store = make(tmp_path / "s")
    old = {path: path.read_bytes() for path in (tmp_path / "s").rglob("0") if path.is_file()}
    replace_tiles(store, 0, seed=50)
    new = {path: path.read_bytes() for path in old}
    journal = store.path / "journal" / "main.jsonl"
    journal.write_bytes(
        journal.read_bytes().rstrip(b"\n").rpartition(b"\n")[0] + b"\n"
    )  # announced, not recorded
    assert verify(store.path).exit_code == 0
    for path, data in old.items():
        path.write_bytes(data)
    assert verify(store.path).exit_code == 0
    for path, data in new.items():
        path.write_bytes(data)
    flip(shard(store, 0), 9)
    found = verify(store.path)
    assert (found.corrupt, found.problems[0].tiles) == (1, (0,))


def test_an_encode_meanwhile_makes_no_false_alarm(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", n=6, shard_tiles=2)
    writing = EmbeddingStore.open(store.path)
    done = threading.Event()
    failures: list[BaseException] = []
    looks = 0

    def write() -> None:
        try:
            for seed in range(100, 400):
                for number in range(3):
                    replace_tiles(writing, number, seed)
                if seed > 110 and looks > 1:  # both have had their time, however slow the machine is
                    return
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        found = verify(store.path)
        assert (found.problems, found.ok) == ((), 6)
        looks += 1
    thread.join()
    assert not failures
    assert looks > 1


def test_the_newest_state_is_read_again_only_when_the_journal_has_changed(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    newest = NewestState(store)
    first = newest.state()
    assert newest.state() is first
    replace_tiles(EmbeddingStore.open(store.path), 0, seed=9)
    second = newest.state()
    assert second is not first
    flip(store.path / "journal" / "main.jsonl", 80)
    with (store.path / "journal" / "main.jsonl").open("ab") as stream:
        stream.write(b"x")
    assert newest.state() is second


def test_a_shard_whose_tiles_were_taken_back_meanwhile_is_not_accused(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    older = EmbeddingStore.open(store.path)
    with store.writer() as writer:
        writer.change_source(None, [], np.arange(6) < 3)
    shard(store, 0).unlink()
    assert judge_shard(older, NewestState(older), 0).intact
    assert verify(store.path).ok == 3


def test_a_journal_that_was_damaged_meanwhile_is_an_error(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    flip(store.path / "journal" / "main.jsonl", 80)
    with pytest.raises(CorruptionError):
        store.read_state()


class Changing(NewestState):
    """A journal that a writer appends to between two looks."""

    def __init__(self, store: EmbeddingStore) -> None:
        super().__init__(store)
        self._looks = 0

    def state(self) -> StoreState:
        self._looks += 1
        if self._looks == 2:
            store = EmbeddingStore.open(self._store.path)
            with store.writer() as writer:
                writer.add_images([*store.images, ImageRecord("c.jpg", 32, 32, "c" * 64)], table(3))
        return super().state()


def test_metadata_that_a_writer_changes_meanwhile_is_not_accused(tmp_path: Path) -> None:
    images = [ImageRecord(f"{name}.jpg", 32, 32, name * 64) for name in "ab"]
    store = filled(tmp_path / "s", n=2, table=table(2), images=images)
    path = store.path / "tiles" / "zarr.json"
    good = path.read_text()
    path.write_text("{")
    newest = Changing(store)
    problems, _ = check_files(store, newest)
    assert [problem.where for problem in problems] == []
    assert path.read_text() != good  # the writer wrote it anew


def test_attributes_of_before_the_last_change_of_the_source_are_only_behind(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    before = (store.path / "zarr.json").read_bytes()
    with store.writer() as writer:
        writer.change_source({"kind": "npy", "shape": [6, 32, 32], "dtype": "uint8"}, [], np.zeros(6, bool))
    (store.path / "zarr.json").write_bytes(before)
    found = verify(store.path)
    assert (found.exit_code, found.problems) == (0, ())
    assert any("behind the journal" in line for line in found.litter)


def test_a_journal_damaged_while_litter_is_listed_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s")
    real = EmbeddingStore.read_state
    reads = []

    def read(self: EmbeddingStore) -> StoreState:
        reads.append(1)
        if len(reads) > 1:
            raise CorruptionError("damaged just now")
        return real(self)

    monkeypatch.setattr(EmbeddingStore, "read_state", read)
    assert verify(store.path).ok == 6
