"""Writers side by side: parts coexist, numbers never clash, a killed one blocks nobody, links are refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from disk_faults import InterruptedDisk
from faults.power import Model, RecordingDisk
from other_disks import watched
from store_samples import DIGEST, IMAGES, commit, embedding, file_bytes, make_store, spec, stored, table

from embedcache.errors import CorruptionError, EmbedcacheError, LockedError, MismatchError, StorageError
from embedcache.files import append_line
from embedcache.files.disk import set_disk
from embedcache.store import EmbeddingStore
from embedcache.store.journal.lines import encode_line, shards_file
from embedcache.store.layout import shard_path
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.writer import StoreWriter


def commit_tiles(writer: StoreWriter, store: EmbeddingStore, *tiles: int) -> None:
    for tile in tiles:
        writer.commit_shard(
            tile // store.shard_tiles, embeddings={tile: embedding(tile)}, input_digests={tile: DIGEST}
        )


def test_parts_write_side_by_side_and_end_with_the_bytes_of_one_writer(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole", n=8)
    with whole.writer() as writer:
        writer.decide_numerics({"threads": 1})
        commit_tiles(writer, whole, *range(8))
    stores = [make_store(tmp_path / "parts", n=8) for _ in range(2)]
    ranges = [stores[0].shard_range(part, 2) for part in range(2)]
    assert [*ranges[0], *ranges[1]] == [0, 1, 2, 3]
    with stores[0].writer(ranges[0]) as first, stores[1].writer(ranges[1]) as second:
        for part, writer in enumerate((first, second)):
            writer.decide_numerics({"threads": 1})
            writer.add_selection({"part": part}, np.arange(8) // 4 == part)
        for tile in range(4):
            commit_tiles(first, stores[0], tile)
            commit_tiles(second, stores[1], 4 + tile)
    again = EmbeddingStore.open(tmp_path / "parts")
    assert again.committed.all()
    assert again.wanted.all()
    assert again.state.numerics == [{"threads": 1}]
    assert all((again[tile].numpy() == embedding(tile)).all() for tile in range(8))
    names = {path.name for path in (tmp_path / "parts" / "journal").glob("*.jsonl")}
    assert names == {"created.jsonl", "main.jsonl", *map(shards_file, ranges)}
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


def comparable(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in file_bytes(path).items() if not name.startswith("journal/")}


def test_a_part_sees_what_others_decided_for_the_whole_store(tmp_path: Path) -> None:
    stores = [make_store(tmp_path, n=4, images=IMAGES[:2]) for _ in range(2)]
    with stores[0].writer(range(1)) as first, stores[1].writer(range(1, 2)) as second:
        first.decide_numerics({"threads": 1})
        with pytest.raises(MismatchError) as caught:
            second.decide_numerics({"threads": 2})
        assert caught.value.differences == {"threads": (1, 2)}
        for writer in (first, second):
            writer.add_images(IMAGES, table(6))
            writer.add_selection({"all": True}, np.ones(6, np.bool_))
            writer.decide_numerics({"threads": 2}, allow=True)
        commit_tiles(second, stores[1], 3)
    again = EmbeddingStore.open(tmp_path)
    assert again.images == tuple(IMAGES)
    assert again.state.numerics == [{"threads": 1}, {"threads": 2}]
    assert len(again.state.selections) == 1
    record = again.shard_record(1)
    assert record is not None
    assert record.numerics == 1


def test_overlapping_writers_are_refused_and_told_who_writes_what(tmp_path: Path) -> None:
    store, other = make_store(tmp_path, n=8), make_store(tmp_path, n=8)
    with store.writer(range(1, 3)):
        for shards in (None, range(2), range(2, 3), range(4)):
            with pytest.raises(LockedError, match="shards 1 to 2"), other.writer(shards):
                pass
        with other.writer(range(1)), EmbeddingStore.open(tmp_path).writer(range(3, 4)):
            pass
    with other.writer():
        pass


def test_a_part_may_not_touch_other_shards_nor_change_the_source(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=8)
    with store.writer(range(1)) as writer:
        with pytest.raises(EmbedcacheError, match="shard 1"):
            commit_tiles(writer, store, 2)
        with pytest.raises(EmbedcacheError, match="whole store"):
            writer.change_source(None, [], np.zeros(8, np.bool_))
    assert not store.committed.any()


def test_a_certificate_can_be_added_while_a_writer_is_at_work(tmp_path: Path) -> None:
    store, other = make_store(tmp_path), make_store(tmp_path)
    with store.writer() as writer:
        commit_tiles(writer, store, 0)
        for number in range(3):
            other.add_certificate({"number": number})
        commit_tiles(writer, store, 1, 2)
    again = EmbeddingStore.open(tmp_path)
    assert [values["number"] for values in again.certificates] == [0, 1, 2]
    assert again.certificate == {"number": 2}
    assert again.committed.tolist() == [True, True, True, False, False]
    assert [values["number"] for values in store.certificates] == [0, 1, 2]


def start_part(path: str, part: int, parts: int, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    store = make_store(Path(path), n=12)
    with store.writer(store.shard_range(part, parts)) as writer:
        writer.decide_numerics({"threads": 1})
        writer.add_selection({"part": part}, np.ones(12, np.bool_))
        for shard in store.shard_range(part, parts):
            commit_tiles(writer, store, 2 * shard, 2 * shard + 1)


def test_parts_that_start_at_once_make_the_store_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_ in range(3):
        path, gate = tmp_path / str(round_), context.Barrier(3)
        started = [context.Process(target=start_part, args=(str(path), part, 3, gate)) for part in range(3)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0, 0, 0]
        store = EmbeddingStore.open(path)
        assert store.status().complete
        assert store.state.numerics == [{"threads": 1}]
        assert all((store[tile].numpy() == embedding(tile)).all() for tile in range(12))


def test_a_killed_part_blocks_nobody_and_leaves_others_alone(tmp_path: Path) -> None:
    make_store(tmp_path / "s", n=8)
    for at in range(1, 60):
        path = tmp_path / f"s{at}"
        shutil.copytree(tmp_path / "s", path)
        living = EmbeddingStore.open(path)
        with living.writer(range(2, 4)) as writer:
            (path / "image_embeddings" / "2.99.partial").write_bytes(b"of a living part")
            finished = killed_part(path, at)
            commit_tiles(writer, living, 4)
            again = EmbeddingStore.open(path)
            with again.writer(range(2)) as second:
                commit_tiles(second, again, 0, 1, 2)
            commit_tiles(writer, living, 5)
            assert [p.name for p in path.rglob("*.partial")] == ["2.99.partial"], f"step {at}"
        found = EmbeddingStore.open(path)
        assert found.committed.tolist() == [True, True, True, False, True, True, False, False], f"step {at}"
        assert all((found[tile].numpy() == embedding(tile)).all() for tile in (0, 1, 2, 4, 5))
        if finished:
            break
    assert at > 20


def killed_part(path: Path, at: int) -> bool:
    """In a child, commit tiles 0 and 1, one after the other, until a step; whether it never came so far."""
    child = os.fork()
    if child == 0:
        disk = InterruptedDisk(at, lambda: os._exit(9))
        set_disk(disk)
        try:
            store = EmbeddingStore.open(path)
            with store.writer(range(2)) as writer:
                commit_tiles(writer, store, 0, 1)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_torn_line_is_cut_by_who_may_and_ignored_by_who_may_not(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=8)
    for shards in (range(2), range(2, 4)):
        with store.writer(shards) as writer:
            commit_tiles(writer, store, 2 * shards.start)
    files = [tmp_path / "journal" / shards_file(shards) for shards in (range(2), range(2, 4))]
    whole = [path.read_bytes() for path in files]
    for path in files:
        path.write_bytes(path.read_bytes() + b'{"kind":"sha')
    assert EmbeddingStore.open(tmp_path).committed.sum() == 2
    with store.writer(range(2)):
        pass
    assert [path.read_bytes() == data for path, data in zip(files, whole, strict=True)] == [True, False]
    with store.writer():
        pass
    assert [path.read_bytes() for path in files] == whole


def test_a_line_that_a_failed_append_left_all_the_same_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, n=4)
    shards = range(2)
    real_sync, real_cut = os.fsync, os.ftruncate
    with store.writer(shards) as writer:
        commit_tiles(writer, store, 0)

        def refuse(descriptor: int, *_: object) -> None:
            if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".jsonl":
                raise OSError(5, "Input/output error")
            real_sync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(StorageError):
            commit_tiles(writer, store, 2)
        monkeypatch.setattr(os, "fsync", real_sync)
        monkeypatch.setattr(os, "ftruncate", real_cut)
        commit_tiles(writer, store, 3)
    for seen in (store, EmbeddingStore.open(tmp_path)):
        assert seen.committed.tolist() == [True, False, True, True]


def test_a_file_that_somebody_else_writes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, n=4)
    monkeypatch.setattr("embedcache.store.journal.replay.catch_up", lambda state: None)
    line = encode_line({"kind": "numerics", "numerics": {}, "seq": 99})

    def write_while_another_does() -> None:
        with store.writer(range(2)) as writer:
            commit_tiles(writer, store, 0)
            append_line(tmp_path / "journal" / shards_file(range(2)), line)
            commit_tiles(writer, store, 2)

    with pytest.raises(StorageError, match="somebody else"):
        write_while_another_does()
    monkeypatch.undo()
    assert EmbeddingStore.open(tmp_path).committed.tolist() == [True, False, False, False]


@pytest.fixture
def other_host(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """While its ``"here"`` is set, sizes of files are as old as the last open: what NFS says to a client."""
    seen: dict[int, os.stat_result] = {}
    switch = {"here": False}
    real_open, real_stat = os.open, os.fstat

    def open_(*given: Any, **named: Any) -> int:
        descriptor = real_open(*given, **named)
        if switch["here"]:
            found = real_stat(descriptor)
            seen[found.st_ino] = found
        return descriptor

    def fstat(descriptor: int) -> os.stat_result:
        found = real_stat(descriptor)
        return seen.setdefault(found.st_ino, found) if switch["here"] else found

    def written(descriptor: int, *_: Any) -> Any:
        return real_fsync(descriptor), seen.pop(real_stat(descriptor).st_ino, None)

    real_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", written)  # what a host writes itself, it knows
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fstat", fstat)
    return switch


def test_a_host_sees_what_another_has_just_journalled_although_its_file_system_remembers_old_sizes(
    tmp_path: Path, other_host: dict[str, bool]
) -> None:
    commit(make_store(tmp_path, n=8), 0)
    mine = EmbeddingStore.open(tmp_path)
    other_host["here"] = True
    theirs = EmbeddingStore.open(tmp_path)
    for file in theirs.state.files.values():
        assert file.size == file.end
    other_host["here"] = False
    with mine.writer(range(2)) as writer:
        writer.decide_numerics({"threads": 1})
        writer.add_selection({"a": 1}, np.ones(8, np.bool_))
        other_host["here"] = True
        with theirs.writer(range(2, 4)) as second:
            with pytest.raises(MismatchError, match="other numerics"):
                second.decide_numerics({"threads": 2})
            second.decide_numerics({"threads": 1})
            commit_tiles(second, theirs, 4)
        other_host["here"] = False
        commit_tiles(writer, mine, 1)
    found = EmbeddingStore.open(tmp_path)
    assert found.state.numerics == [{"threads": 1}]
    assert found.committed.tolist() == [True, True, False, False, True, False, False, False]


def test_a_writer_follows_a_compaction_of_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.store.journal.compaction.COMPACT_BYTES", 0)
    first, second = make_store(tmp_path, n=8), make_store(tmp_path, n=8)
    for tile in range(4):
        commit((first, second)[tile % 2], tile)
    for seen in (second, EmbeddingStore.open(tmp_path)):
        assert seen.committed.tolist() == [True] * 4 + [False] * 4
        assert seen.state.snapshot is not None


def test_a_writer_whose_lock_file_was_removed_commits_no_more(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=4)
    for shards in (None, range(1)):
        with store.writer(shards) as writer:
            for path in (tmp_path / "journal" / "locks").iterdir():
                path.unlink()
            with pytest.raises(StorageError, match="its lock file was removed"):
                commit_tiles(writer, store, 0)
    assert not EmbeddingStore.open(tmp_path).committed.any()


def test_a_users_own_files_are_left_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=4)
    own = [tmp_path / "my-notes.partial", tmp_path / "image_embeddings" / "draft.partial"]
    left = [tmp_path / "zarr.json.4711.partial", tmp_path / "image_embeddings" / "0.4711.partial"]
    for path in own + left:
        path.write_text("x")
    commit(store, 0)
    assert [path.exists() for path in own + left] == [True, True, False, False]


def test_a_damaged_journal_names_the_command_that_mends_it(tmp_path: Path) -> None:
    commit(make_store(tmp_path / "my store"), 0)
    path = tmp_path / "my store" / "journal" / "main.jsonl"
    path.write_bytes(path.read_bytes().replace(b"shard", b"shart", 1))
    with pytest.raises(CorruptionError) as caught:
        EmbeddingStore.open(tmp_path / "my store")
    assert f"embedcache repair '{tmp_path / 'my store'}'" in str(caught.value)


def test_a_certificate_leaves_the_snapshot_that_a_writer_of_the_same_object_uses(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.writer() as writer:
        commit_tiles(writer, store, 0)
        before = store.state
        store.add_certificate({"number": 0})
        assert store.state is before
        commit_tiles(writer, store, 1)
        assert store.certificate == {"number": 0}
    assert EmbeddingStore.open(tmp_path).certificate == {"number": 0}


# ---- killed, run again to the end, then a power cut


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_the_run_after_a_kill_reports_is_there_after_a_power_cut(tmp_path: Path, dtype: str) -> None:
    """A kill leaves steps that nobody fsynced; the next run must not take them for safe."""
    commit(make_store(tmp_path / "begin", n=4, spec=spec(store_dtype=dtype)), 0)
    whole = make_store(tmp_path / "whole", n=4, spec=spec(store_dtype=dtype))
    for shard in range(2):
        commit(whole, 2 * shard, 2 * shard + 1)
    expected = [whole[tile] for tile in range(4)]
    here, step = tmp_path / "here", 0
    finished = False
    while not finished:
        step += 1
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(tmp_path / "begin", here / "s")
        disk = Model(here)
        finished = recorded(tmp_path / "log1", here / "s", step)
        assert recorded(tmp_path / "log2", here / "s", None)
        for log in ("log1", "log2"):
            for taken in steps_of(tmp_path / log):
                disk.step(*taken)
        disk.write("strict", Random(step))
        found = EmbeddingStore.open(here / "s")
        assert found.committed.all(), f"killed at step {step}"
        for tile in range(4):
            assert torch.equal(found[tile], expected[tile]), f"killed at step {step}"
    assert step > 12


CHANGES = ("mkdir", "replace", "write", "truncate")
"""Steps after which something is not durable yet: the moments at which a kill matters."""


def recorded(log: Path, path: Path, at: int | None) -> bool:
    """In a child, commit what is missing and note the steps; killed at a change. Whether it came to the end."""

    class Killed(RecordingDisk):
        left = at

        def note(self, *step: Any) -> None:
            super().note(*step)
            if self.left is not None and step[0] in CHANGES:
                self.left -= 1
                if self.left == 0:
                    os._exit(9)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            set_disk(Killed(log))
            store = EmbeddingStore.open(path)
            if store.committed.all():
                store.make_durable()
            else:
                with store.writer() as writer:
                    missing = {tile: stored(store, tile) for tile in range(4) if not store.committed[tile]}
                    for shard in {tile // 2 for tile in missing}:
                        given = {tile: row for tile, row in missing.items() if tile // 2 == shard}
                        digests = dict.fromkeys(given, DIGEST)
                        writer.commit_shard(shard, embeddings=given, input_digests=digests)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


def steps_of(log: Path) -> list[tuple[Any, ...]]:
    found = []
    with log.open("rb") as stream:
        while stream.tell() < log.stat().st_size:
            found.append(pickle.load(stream))
    return found


def test_making_durable_a_store_that_may_only_be_read_does_nothing_and_a_failing_disk_is_told(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path)

    def refuse(number: int) -> Callable[[str, tuple[Any, ...]], None]:
        def before(step: str, _: tuple[Any, ...]) -> None:
            if step == "open_kept":
                raise OSError(number, os.strerror(number))

        return before

    with watched(refuse(errno.EROFS)):
        store.make_durable()
    with watched(refuse(errno.EIO)), pytest.raises(StorageError, match="Input/output"):
        store.make_durable()


def test_threads_of_one_writer_take_turns(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=16)
    with store.writer() as writer:
        threads = [
            threading.Thread(target=commit_tiles, args=(writer, store, tile)) for tile in range(0, 16, 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert EmbeddingStore.open(tmp_path).committed.sum() == 8


# ---- a changed source


def test_a_changed_source_takes_back_its_tiles_and_nothing_else(tmp_path: Path) -> None:
    store, reader = make_store(tmp_path, n=6), make_store(tmp_path, n=6)
    with store.writer() as writer:
        writer.add_selection({}, np.ones(6, np.bool_))
        writer.commit_shard(
            0, embeddings={0: embedding(0), 1: embedding(1)}, input_digests={0: DIGEST, 1: "cd" * 32}
        )
        commit_tiles(writer, store, 2)
        before = file_bytes(tmp_path / "image_embeddings")
        writer.change_source({"kind": "npy", "shape": (6, 32, 32)}, [], np.arange(6) % 2 == 1)
        assert store.spec.volume == {"kind": "npy", "shape": [6, 32, 32]}
        assert store.fingerprint == spec(volume={"kind": "npy", "shape": [6, 32, 32]}).fingerprint
        assert store.embedding_space == spec().embedding_space
    reader.refresh()
    for seen in (store, reader, EmbeddingStore.open(tmp_path)):
        assert seen.fingerprint == store.fingerprint != spec().fingerprint
        assert seen.committed.tolist() == [True, False, True, False, False, False]
        assert seen.missing.tolist() == [False, True, False, True, True, True]
        numbers, digests = seen.recorded_inputs()
        assert numbers.tolist() == [0, 2]
        assert digests.tobytes().hex() == DIGEST * 2
        record = seen.shard_record(0)
        assert record is not None
        assert record.stale is not None
        assert (record.slots.tolist(), record.stale.slots.tolist()) == ([0], [1])
    assert file_bytes(tmp_path / "image_embeddings") == before
    # what is said of a tile of that shard does not bring the other back, and a new embedding does
    commit(store, failed={1: "cannot be read"})
    assert store.committed.tolist() == [True, False, True, False, False, False]
    assert store.failed == {1: "cannot be read"}
    commit(store, 1, seed=9)
    for seen in (store, EmbeddingStore.open(tmp_path)):
        assert (seen[1].numpy() == embedding(10)).all()
        assert (seen[0].numpy() == embedding(0)).all()
        assert not seen.state.stale.any()


def test_a_shard_that_is_undecided_is_left_to_its_holder_and_keeps_the_source_from_changing(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path, n=8)
    commit(store, 0)
    record = store.shard_record(0)
    assert record is not None
    intent = {**record.to_dict(2, "intent"), "digest": "sha256:" + "1" * 64, "seq": 99}
    append_line(tmp_path / "journal" / "main.jsonl", encode_line(intent))
    with store.writer(range(2, 4)) as writer:
        commit_tiles(writer, store, 5)
    assert list(store.state.intents) == [0]
    damaged = shard_path(tmp_path, 0)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with store.writer() as writer, pytest.raises(CorruptionError, match="shard 0"):
        writer.change_source({"kind": "other"}, [], np.zeros(8, np.bool_))
    assert EmbeddingStore.open(tmp_path).fingerprint == spec().fingerprint


def test_a_store_of_int8_counts_its_scales(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=4, spec=spec(store_dtype="int8"))
    commit(store, failed={2: "x"})
    with store.writer(range(1)) as writer:
        for tile in (0, 1):
            stored, scales = quantise(torch.from_numpy(embedding(tile).copy())[None])
            given = {tile: Quantised(stored[0].numpy(), scales[0].numpy())}
            writer.commit_shard(0, embeddings=given, input_digests={tile: DIGEST})
    files = [*(tmp_path / "image_embeddings" / "c").rglob("0"), *(tmp_path / "scales" / "c").rglob("0")]
    assert store.status().bytes == sum(path.stat().st_size for path in files if path.is_file())


def test_changed_images_are_others_in_the_table(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=4, images=IMAGES)
    other = IMAGES[1].__class__("b.jpg", 32, 40, "f" * 64)
    with store.writer() as writer:
        writer.change_source(None, [(1, other)], np.zeros(4, np.bool_))
    for seen in (store, EmbeddingStore.open(tmp_path)):
        assert seen.images == (IMAGES[0], other, *IMAGES[2:])
        assert seen.fingerprint == spec().fingerprint


def test_a_change_stopped_at_any_step_is_either_not_there_or_whole(tmp_path: Path) -> None:
    begin = make_store(tmp_path / "s", n=4)
    commit(begin, 0, 1)
    old, new = spec().fingerprint, spec(volume={"kind": "other"}).fingerprint
    seen = set()
    for at in range(1, 60):
        path = tmp_path / f"s{at}"
        shutil.copytree(tmp_path / "s", path)
        finished = killed_change(path, at)
        found = EmbeddingStore.open(path)
        assert (found.fingerprint, found.committed[:2].tolist()) in (
            (old, [True, True]),
            (new, [True, False]),
        )
        seen.add(found.fingerprint)
        with found.writer():
            pass
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]["embedcache"]
        assert attributes["fingerprint"] == found.fingerprint, f"step {at}"
        if finished:
            break
    assert seen == {old, new}


def killed_change(path: Path, at: int) -> bool:
    child = os.fork()
    if child == 0:
        set_disk(InterruptedDisk(at, lambda: os._exit(9)))
        try:
            store = EmbeddingStore.open(path)
            with store.writer() as writer:
                writer.change_source({"kind": "other"}, [], np.arange(4) == 1)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- links


@pytest.mark.parametrize(
    "name",
    ["journal", "journal/locks", "image_embeddings", "image_embeddings/c", "tiles", "tiles/c", "scales"],
)
def test_a_folder_that_is_a_link_is_never_written_through(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "s")
    commit(store, 0)
    outside = tmp_path / "outside"
    folder = tmp_path / "s" / name
    if folder.exists():
        shutil.move(folder, outside)
    else:
        outside.mkdir()
    folder.symlink_to(outside)
    before = file_bytes(outside)
    with pytest.raises(CorruptionError, match="link"), store.writer() as writer:
        commit_tiles(writer, store, 1)
    if name == "journal":
        with pytest.raises(CorruptionError, match="link"):
            store.add_certificate({})
        with pytest.raises(CorruptionError, match="link"):
            make_store(tmp_path / "s")
    assert file_bytes(outside) == before


LINKS: dict[str, Callable[[EmbeddingStore], object]] = {
    "zarr.json": lambda store: EmbeddingStore.open(store.path),
    "journal/created.jsonl": lambda store: EmbeddingStore.open(store.path),
    "journal/main.jsonl": lambda store: EmbeddingStore.open(store.path),
    "tiles/c/0/0": lambda store: EmbeddingStore.open(store.path),
    "decoder.safetensors": lambda store: store.decoder_state(),
}


@pytest.mark.parametrize("name", list(LINKS))
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_is_a_link_or_a_pipe_is_never_read(tmp_path: Path, name: str, kind: str) -> None:
    store = make_store(tmp_path / "s")
    commit(store, 0)
    path = tmp_path / "s" / name
    shutil.move(path, tmp_path / "outside")
    if kind == "link":
        path.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(path)
    with pytest.raises(CorruptionError):
        LINKS[name](store)
