"""gc shows what nobody needs, removes nothing by itself, and never touches what is not ours."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from care_samples import filled, filled_int8, flip, replace_tiles, shard
from store_samples import commit, file_bytes, make_store

from embedcache.errors import CorruptionError, InputError, LockedError
from embedcache.store import EmbeddingStore, layout
from embedcache.store.care.gc import find_garbage, partial_files, references, remove_garbage
from embedcache.store.care.unclaimed import kept_copies
from embedcache.store.care.verify import verify
from embedcache.store.journal import compaction


def make_run(runs: Path, store: EmbeddingStore, name: str = "one", **changes: object) -> None:
    folder = runs / name
    folder.mkdir(parents=True)
    config = {"stores": [str(store.path)], "fingerprints": [store.fingerprint]}
    (folder / "config.json").write_text(json.dumps(config | changes))


def littered(path: Path) -> EmbeddingStore:
    """A store with one of each kind of litter."""
    store = filled(path, n=9)
    (path / "image_embeddings" / "1.4711.partial").write_bytes(b"xx")
    (path / "tiles" / "c" / "0" / "0.12.partial").write_bytes(b"x")
    (path / "journal" / "locks").mkdir(exist_ok=True)
    (path / "journal" / "locks" / "dead.lock").write_text('{"shards":null,"holder":"process 1 on old"}')
    (path / "journal" / "snapshot-1.safetensors").write_bytes(b"xyz")
    orphan = shard(store, 7)
    orphan.parent.mkdir(parents=True)
    shutil.copy(shard(store, 0), orphan)
    return store


KINDS = ["partial file", "partial file", "dead lock", "older snapshot"]  # not the shard without a record


def test_a_clean_store_holds_no_garbage(tmp_path: Path) -> None:
    assert find_garbage(filled_int8(tmp_path / "s").path) == []


def test_litter_is_shown_with_its_bytes_and_nothing_is_removed(tmp_path: Path) -> None:
    store = littered(tmp_path / "s")
    before = file_bytes(store.path)
    found = find_garbage(store.path)
    assert sorted(item.what for item in found) == sorted(KINDS)
    assert {item.bytes for item in found if item.what == "partial file"} == {1, 2}
    assert file_bytes(store.path) == before


def test_a_file_that_is_published_while_litter_is_listed_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "image_embeddings"
    folder.mkdir()
    for name in ("0.1.partial", "1.1.partial"):
        (folder / name).write_bytes(b"x")
    found = partial_files(tmp_path)
    assert next(found).path.name == "0.1.partial"
    (folder / "1.1.partial").unlink()
    assert list(found) == []


def test_a_folder_without_a_journal_of_its_own_holds_no_kept_copies(tmp_path: Path) -> None:
    assert list(kept_copies(tmp_path)) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "main.jsonl.damaged").write_text("x")
    (tmp_path / "journal").symlink_to(tmp_path / "elsewhere")
    assert list(kept_copies(tmp_path)) == []


def test_only_what_was_shown_is_removed(tmp_path: Path) -> None:
    store = littered(tmp_path / "s")
    shown = find_garbage(store.path)
    before = file_bytes(store.path)
    removed = remove_garbage(store.path)
    assert {item.path for item in removed} == {item.path for item in shown}
    gone = {str(item.path.relative_to(store.path)) for item in shown}
    assert file_bytes(store.path) == {name: data for name, data in before.items() if name not in gone}
    assert find_garbage(store.path) == []
    assert verify(store.path).ok == 9


def test_foreign_files_and_links_are_never_touched(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    outside = tmp_path / "outside"
    (outside / "5" / "0" / "0").mkdir(parents=True)
    (outside / "5" / "0" / "0" / "0").write_text("precious")
    (outside / "x.1.partial").write_text("precious")
    (store.path / "notes.txt").write_text("mine")
    (store.path / "thesis.partial").write_text("mine")  # no process number: not one of ours
    (store.path / "linked").symlink_to(outside)
    (store.path / "image_embeddings" / "c" / "5").symlink_to(outside / "5")
    (store.path / "journal" / "snapshot-0.safetensors").symlink_to(outside / "x.1.partial")
    (store.path / "image_embeddings" / "c" / "odd").mkdir()
    assert remove_garbage(store.path) == []
    assert (
        (outside / "5" / "0" / "0" / "0").read_text() == (outside / "x.1.partial").read_text() == "precious"
    )
    assert (store.path / "notes.txt").exists()
    assert (store.path / "thesis.partial").exists()


def test_a_store_that_is_itself_a_link_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    (tmp_path / "link").symlink_to(store.path)
    with pytest.raises(InputError, match="is a link"):
        find_garbage(tmp_path / "link")


def test_the_folder_of_embeddings_may_be_missing_or_a_link(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    assert find_garbage(store.path) == []
    (store.path / "image_embeddings" / "c").symlink_to(tmp_path)
    assert find_garbage(store.path) == []


def test_while_somebody_writes_nothing_is_removed(tmp_path: Path) -> None:
    store = littered(tmp_path / "s")
    before = file_bytes(store.path)
    folder = store.path / "journal" / "locks"
    with (folder / "alive.lock").open("w") as stream:
        stream.write('{"shards":[0,1],"holder":"process 2 on new"}')
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "alive.lock" not in {item.path.name for item in find_garbage(store.path)}
        with pytest.raises(LockedError, match="process 2 on new"):
            remove_garbage(store.path)
    (folder / "alive.lock").unlink()
    after = file_bytes(store.path)
    assert set(before) - set(after) <= {"journal/locks/dead.lock"}


def test_a_lock_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    (store.path / "journal" / "locks").mkdir(exist_ok=True)
    (tmp_path / "target").write_text("x")
    (store.path / "journal" / "locks" / "odd.lock").symlink_to(tmp_path / "target")
    assert find_garbage(store.path) == []


def test_a_store_that_cannot_be_written_is_shown_without_its_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = littered(tmp_path / "s")
    real = os.open

    def refused(path, flags, mode=0o777, *, dir_fd=None):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refused)
    kinds = [item.what for item in find_garbage(store.path)]
    assert sorted(kinds) == sorted(kind for kind in KINDS if kind != "dead lock")


def test_a_shard_file_that_is_only_announced_or_stale_is_kept(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    replace_tiles(store, 0, seed=40)
    journal = store.path / "journal" / "main.jsonl"
    journal.write_bytes(journal.read_bytes().rstrip(b"\n").rpartition(b"\n")[0] + b"\n")
    assert find_garbage(store.path) == []
    store = EmbeddingStore.open(store.path)
    with store.writer() as writer:
        writer.change_source(None, [], np.ones(6, bool))
    assert find_garbage(store.path) == []


def test_the_snapshot_that_the_journal_names_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    store = filled(tmp_path / "s")
    assert EmbeddingStore.open(store.path).state.snapshot is not None
    assert find_garbage(store.path) == []
    (store.path / "journal" / "snapshot-0.safetensors").write_bytes(b"x")
    assert [item.path.name for item in remove_garbage(store.path)] == ["snapshot-0.safetensors"]
    assert verify(store.path).ok == 6


def test_a_damaged_store_is_left_alone(tmp_path: Path) -> None:
    store = littered(tmp_path / "s")
    flip(store.path / "journal" / "main.jsonl", 80)
    before = file_bytes(store.path)
    with pytest.raises(CorruptionError):
        remove_garbage(store.path)
    assert file_bytes(store.path) == before


# ---- whole stores


def test_a_store_whose_making_was_interrupted_is_garbage_as_a_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    (store.path / "zarr.json").unlink()
    assert [item.what for item in find_garbage(store.path)] == ["half-made store"]
    (removed,) = remove_garbage(store.path)
    assert removed.bytes > 0
    assert not store.path.exists()


def test_a_folder_that_holds_embeddings_or_something_else_is_no_half_made_store(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    (store.path / "zarr.json").unlink()
    with pytest.raises(InputError, match="holds embeddings"):
        remove_garbage(store.path)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="no store"):
        remove_garbage(tmp_path / "other")
    half = make_store(tmp_path / "half")
    (half.path / "zarr.json").unlink()
    (half.path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        remove_garbage(half.path)
    assert (half.path / "thesis.tex").exists()


def test_a_store_that_no_run_refers_to_is_garbage_only_when_asked_for(tmp_path: Path) -> None:
    used, unused, moved = (filled(tmp_path / name, n=3) for name in ("used", "unused", "moved"))
    make_run(tmp_path / "runs", used, fingerprints=[])
    known = references(tmp_path / "runs")
    assert known.runs == 1
    assert find_garbage(used.path, known) == find_garbage(unused.path) == []
    assert [item.what for item in find_garbage(unused.path, known)] == ["unused store"]
    make_run(tmp_path / "runs", moved, "two", stores=["/gone/elsewhere.zarr"])  # known by its fingerprint
    assert find_garbage(moved.path, references(tmp_path / "runs")) == []
    (removed,) = remove_garbage(unused.path, known)
    assert removed.bytes > 6_000_000
    assert not unused.path.exists()
    assert verify(used.path).ok == 3


def test_a_store_that_a_run_names_through_a_link_is_used(tmp_path: Path) -> None:
    store = filled(tmp_path / "data" / "s", n=3)
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    make_run(tmp_path / "runs", store, stores=[str(tmp_path / "alias" / "s")], fingerprints=[])
    assert find_garbage(store.path, references(tmp_path / "runs")) == []
    make_run(tmp_path / "more", store, fingerprints=[])
    assert find_garbage(tmp_path / "alias" / "s", references(tmp_path / "more")) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_a_store_is_known_by_every_fingerprint_that_it_has_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    store = filled(tmp_path / "s", n=3)
    make_run(tmp_path / "runs", store, stores=["/gone/elsewhere.zarr"])
    if compacted:
        monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    for pixels in ("1" * 64, "2" * 64):
        with store.writer() as writer:
            writer.change_source({**store.spec.volume, "pixels": pixels}, [], np.zeros(3, bool))
    again = EmbeddingStore.open(store.path)
    assert (again.state.snapshot is not None) is compacted
    assert len({again.fingerprint, *again.state.former}) == 3
    assert find_garbage(store.path, references(tmp_path / "runs")) == []


def test_an_unused_store_with_foreign_files_is_not_removed(tmp_path: Path) -> None:
    store, used = filled(tmp_path / "s", n=3), filled(tmp_path / "used", n=3)
    make_run(tmp_path / "runs", used, fingerprints=[])
    (store.path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        remove_garbage(store.path, references(tmp_path / "runs"))
    assert verify(store.path).ok == 3


def test_without_any_run_no_store_counts_as_unused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        references(tmp_path / "runs")


@pytest.mark.parametrize("changes", [{"stores": None}, {"fingerprints": 3}])
def test_a_run_that_does_not_say_its_stores_stops_it(tmp_path: Path, changes: dict[str, object]) -> None:
    make_run(tmp_path / "runs", make_store(tmp_path / "s"), **changes)
    with pytest.raises(InputError, match="does not say"):
        references(tmp_path / "runs")
    assert (tmp_path / "s" / layout.GROUP_FILE).exists()


def test_a_journal_that_lost_its_lines_is_damage_and_gc_leaves_what_they_spoke_of(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n=4, shard_tiles=2)
    with store.writer() as writer:
        writer.decide_numerics({"attention": "mask", "batch": 1})
    commit(store, 0)
    commit(store, 2)
    (store.path / "journal" / "main.jsonl").unlink()
    verdict = verify(store.path)
    assert verdict.exit_code == 4
    assert any("lines of the journal are lost" in problem.reason for problem in verdict.problems)
    remove_garbage(store.path)
    assert all(shard(store, number).exists() for number in (0, 1))
