"""Compaction: a long journal becomes a snapshot that says the same, at any moment and to anybody reading."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from disk_faults import InterruptedDisk, refuse
from store_samples import DIGEST, IMAGES, commit, embedding, file_bytes, journal_records, make_store, table

from embedcache.errors import CorruptionError, StorageError
from embedcache.files import crc32c
from embedcache.files.disk import set_disk
from embedcache.store import EmbeddingStore
from embedcache.store.journal import compaction
from embedcache.store.journal.lines import CREATED, encode_line
from embedcache.store.journal.snapshot import STALE, is_snapshot


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writer compacts at its opening and its closing."""
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    monkeypatch.setattr(compaction, "SNAPSHOT_SHARE", 0)


def compacted(path: Path) -> Path | None:
    """The journal's snapshot file, when it is the only file beside ``created.jsonl``."""
    names = sorted(p.name for p in (path / "journal").iterdir() if p.is_file())
    found = [name for name in names if is_snapshot(name)]
    clean = set(names) == {"zarr.json", "writer.lock", CREATED, *found}
    return path / "journal" / found[0] if clean and len(found) == 1 else None


def said(store: EmbeddingStore) -> dict[str, Any]:
    """All that a store says of itself, as plain values."""
    records = [store.shard_record(shard) for shard in range(store.n_shards)]
    form = store.form
    numbers, digests = store.recorded_inputs()
    return {
        "status": store.status().to_dict(),
        "flags": store.state.flags.tolist(),
        "stale": store.state.stale.tolist(),
        "crc": store.state.crc[store.committed].tolist(),
        "wanted": store.wanted.tolist(),
        "failed": store.failed,
        "skipped": store.skip_reasons,
        "images": store.images,
        "numerics": store.state.numerics,
        "selections": store.state.selections,
        "certificates": store.certificates,
        "former": store.state.former,
        "attributes": store.attributes,
        "inputs": (numbers.tolist(), digests.tolist()),
        "records": [
            record and {**record.to_dict(store.shard_tiles), "writer": "", "seconds": {}}
            for record in records
        ],
        "indexes": [record and record.index(store.shard_tiles, form).tolist() for record in records],
    }


def busy_store(path: Path) -> EmbeddingStore:
    """A store about which there is something of every kind to say."""
    store = make_store(path, n=9, shard_tiles=2, images=[*IMAGES[:3]])
    with store.writer() as writer:
        writer.decide_numerics({"threads": 1})
        writer.decide_numerics({"threads": 2}, allow=True)
        writer.add_selection({"z_range": "0:7"}, np.arange(9) < 7)
        writer.add_images(IMAGES, table(10))
    commit(store, 0, 1)
    commit(store, 2, failed={3: "cannot be read"})
    commit(store, skipped={4: "empty", 5: "empty"})
    commit(store, 8)
    with store.writer() as writer:
        writer.change_source(None, [(1, IMAGES[0])], np.arange(10) == 1)
    store.add_certificate({"tiles": 3, "iou": 0.5})
    commit(store, failed={1: "not finite"})
    return store


def test_a_compacted_journal_says_what_the_lines_said(tmp_path: Path, eager: None) -> None:
    compaction.COMPACT_BYTES = 1 << 30
    store = busy_store(tmp_path / "s")
    before = said(store)
    assert compacted(tmp_path / "s") is None
    compaction.COMPACT_BYTES = 0
    with store.writer():
        pass
    assert compacted(tmp_path / "s")
    assert said(store) == before
    again = EmbeddingStore.open(tmp_path / "s")
    assert said(again) == before
    assert (again[0].numpy() == embedding(0)).all()


def test_what_comes_after_a_snapshot_holds_and_is_compacted_in_its_turn(tmp_path: Path, eager: None) -> None:
    store = busy_store(tmp_path / "s")
    first = compacted(tmp_path / "s")
    with store.writer() as writer:
        writer.add_images([*store.images, IMAGES[0].__class__("e.jpg", 5, 5, "e" * 64)], table(11))
        writer.add_selection({"all": True}, np.ones(11, np.bool_))
        for tile in (1, 3, 4):
            writer.commit_shard(tile // 2, embeddings={tile: embedding(tile)}, input_digests={tile: DIGEST})
        writer.commit_shard(5, embeddings={}, input_digests={}, failed={10: "another reason"})
        assert store.failed == {10: "another reason"}
        during = said(store)
        assert said(EmbeddingStore.open(tmp_path / "s")) == during
        assert during["stale"] == [False] * 11
    assert said(EmbeddingStore.open(tmp_path / "s")) == during
    assert first is not None
    assert compacted(tmp_path / "s") not in (None, first)
    assert all((store[tile].numpy() == embedding(tile)).all() for tile in (0, 1, 2, 3, 4, 8))


def test_a_snapshot_is_a_safetensors_file_with_the_documented_columns(tmp_path: Path, eager: None) -> None:
    store = busy_store(tmp_path / "s")
    with store.writer() as writer:
        writer.change_source(None, [], np.arange(10) == 2)
    path = compacted(tmp_path / "s")
    assert path is not None
    columns = safetensors.numpy.load_file(path)
    assert columns["flags"].tolist() == [1, 3, STALE, 3, 2, 2, 0, 0, 1, 0]
    assert columns["inputs"][8].tobytes().hex() == DIGEST
    assert columns["crc"][0] == store.record(0).crc32c
    assert columns["shard_bytes"].tolist() == store.state.shard_bytes.tolist()
    (_, about), (_, record) = journal_records(tmp_path / "s" / "journal" / CREATED)
    assert about["attributes"] == store.attributes
    assert f"{crc32c(path.read_bytes()):08x}" == record["file_crc32c"]


def test_a_store_without_a_record_of_itself_gets_one(tmp_path: Path, eager: None) -> None:
    store = make_store(tmp_path / "s")
    lines = (tmp_path / "s" / "journal" / CREATED).read_text().splitlines()
    (tmp_path / "s" / "journal" / CREATED).write_text(lines[1] + "\n")
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.state.attributes is None
    commit(store, 0)
    assert EmbeddingStore.open(tmp_path / "s").state.attributes == store.attributes


def test_nothing_is_compacted_while_the_journal_is_short_or_others_write(tmp_path: Path, eager: None) -> None:
    store = make_store(tmp_path / "s", n=8)
    compaction.COMPACT_BYTES = 1 << 20
    commit(store, 0)
    assert compacted(tmp_path / "s") is None
    compaction.COMPACT_BYTES = 0
    other = EmbeddingStore.open(tmp_path / "s")
    with other.writer(range(2, 4)):
        with store.writer(range(2)) as writer:
            writer.commit_shard(1, embeddings={2: embedding(2)}, input_digests={2: DIGEST})
        assert compacted(tmp_path / "s") is None
    assert compacted(tmp_path / "s")
    assert EmbeddingStore.open(tmp_path / "s").committed.sum() == 2


def test_nothing_is_compacted_while_a_replacement_is_undecided(tmp_path: Path, eager: None) -> None:
    store = make_store(tmp_path / "s")
    commit(store, 0)
    record = store.shard_record(0)
    assert record is not None
    intent = {**record.to_dict(2, "intent"), "digest": "sha256:" + "1" * 64, "seq": store.state.sequence + 1}
    (tmp_path / "s" / "journal" / "main.jsonl").write_text(encode_line(intent) + "\n")
    path = tmp_path / "s" / "image_embeddings" / "c" / "0" / "0" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1])
    store.refresh()
    before = compacted(tmp_path / "s")
    with store.writer() as writer:
        writer.add_selection({}, np.ones(5, np.bool_))
    assert store.state.intents
    assert compacted(tmp_path / "s") == before


def test_a_journal_too_rich_for_a_header_stays_as_it_is(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "HEADER_LIMIT", 10)
    store = make_store(tmp_path / "s")
    commit(store, 0)
    assert not list((tmp_path / "s" / "journal").glob("snapshot-*"))
    assert (store[0].numpy() == embedding(0)).all()


# ---- stopped anywhere, read at any time


@pytest.mark.parametrize("kind", ["killed", "disk full"])
def test_a_compaction_stopped_at_any_step_changes_nothing_that_is_said(
    tmp_path: Path, eager: None, kind: str
) -> None:
    compaction.COMPACT_BYTES = 1 << 30
    wanted = said(busy_store(tmp_path / "whole"))
    compaction.COMPACT_BYTES = 0
    shutil.copytree(tmp_path / "whole", tmp_path / "before")
    for at in range(1, 100):
        path = tmp_path / f"s{at}"
        shutil.copytree(tmp_path / "before", path)
        finished = compacts_until(path, at, kind)
        found = EmbeddingStore.open(path)
        wanted["status"]["store"] = str(path)
        assert said(found) == wanted, f"step {at}"
        with found.writer() as writer:
            writer.add_selection({"x": at}, np.zeros(10, np.bool_))
        assert compacted(path), f"step {at}"
        assert not list(path.rglob("*.partial"))
        if finished:
            break
    assert at > 15


def compacts_until(path: Path, at: int, kind: str) -> bool:
    """In a child, open and close a writer that is stopped at a step; returns whether it never came so far."""
    child = os.fork()
    if child == 0:
        disk = InterruptedDisk(at, lambda: os._exit(9) if kind == "killed" else refuse())
        set_disk(disk)
        try:
            with EmbeddingStore.open(path).writer():
                pass
        except StorageError:
            os._exit(6)
        finally:
            os._exit(0 if disk.left > 0 else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_disk_too_full_for_a_snapshot_is_no_reason_to_fail(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s")

    def refuse_snapshots(path: Path, parts: object) -> int:
        if is_snapshot(path.name):
            raise StorageError("full")
        raise AssertionError("unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "write_file", refuse_snapshots)
        commit(store, 0)
        assert compacted(tmp_path / "s") is None
    commit(store, 1)
    assert compacted(tmp_path / "s")
    assert store.committed.tolist() == [True, True, False, False, False]


def test_readers_see_whole_stores_while_the_journal_is_compacted(tmp_path: Path, eager: None) -> None:
    store = busy_store(tmp_path / "s")
    old = EmbeddingStore.open(tmp_path / "s")
    before = said(old)
    stop, failures, looks = threading.Event(), [], [0]

    def read() -> None:
        while not stop.is_set():
            try:
                seen = EmbeddingStore.open(tmp_path / "s")
                assert (seen[0].numpy() == embedding(0)).all()
                assert seen.committed[[0, 2, 8]].all()
                looks[0] += 1
            except Exception as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    number, until = 0, time.monotonic() + 120
    while not failures and (number < 40 or (looks[0] <= 3 and time.monotonic() < until)):
        with store.writer() as writer:
            writer.add_selection({"round": number}, np.zeros(10, np.bool_))
        number += 1
    stop.set()
    reader.join()
    assert not failures
    assert looks[0] > 3
    assert said(old) == before, "what was opened before stays readable"


def test_a_journal_that_is_replaced_each_time_it_is_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "s")
    monkeypatch.setattr("embedcache.store.journal.file.JournalFile.is_current", lambda _: False)
    with pytest.raises(CorruptionError, match="another journal each"):
        EmbeddingStore.open(tmp_path / "s")


# ---- damaged, and hostile


def test_a_damaged_or_missing_snapshot_is_found(tmp_path: Path, eager: None) -> None:
    busy_store(tmp_path / "s")
    path = compacted(tmp_path / "s")
    assert path is not None
    data = path.read_bytes()
    for at in (3, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(CorruptionError, match="checksum"):
            EmbeddingStore.open(tmp_path / "s")
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptionError, match="checksum"):
        EmbeddingStore.open(tmp_path / "s")
    path.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        EmbeddingStore.open(tmp_path / "s")
    path.symlink_to("/etc/passwd")
    with pytest.raises(CorruptionError, match="link"):
        EmbeddingStore.open(tmp_path / "s")


def change_snapshot(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Forge a snapshot: its header is changed, and its checksum made right again."""
    file = compacted(path)
    assert file is not None
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["journal"])
    change(header, about)
    if "__metadata__" in header:
        header["__metadata__"]["journal"] = json.dumps(about)
    text = json.dumps(header).encode()
    write_snapshot(path, file, len(text).to_bytes(8, "little") + text + data[8 + length :])


def write_snapshot(path: Path, file: Path, data: bytes) -> None:
    file.write_bytes(data)
    (_, about), (_, record) = journal_records(path / "journal" / CREATED)
    record |= {"bytes": len(data), "file_crc32c": f"{crc32c(data):08x}"}
    (path / "journal" / CREATED).write_text(encode_line(about) + "\n" + encode_line(record) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda header, about: about.update(tiles=2**40),
        lambda header, about: about.update(tiles=-1),
        lambda header, about: about.update(tiles=8),
        lambda header, about: about.update(shard_tiles=3),
        lambda header, about: about.pop("images"),
        lambda header, about: about.update(images=[{"name": "../x", "height": 1, "width": 1, "sha256": ""}]),
        lambda header, about: about.update(numerics=[3]),
        lambda header, about: about.update(reasons=[]),
        lambda header, about: header.pop("__metadata__"),
        lambda header, about: header.pop("crc"),
        lambda header, about: header.update(more=header["crc"]),
        lambda header, about: header["crc"].update(dtype="F64"),
        lambda header, about: header["crc"].update(shape=[2**62]),
        lambda header, about: header["crc"].update(data_offsets=[-40, 0]),
        lambda header, about: header["crc"].update(data_offsets=[10**9, 10**9 + 40]),
        lambda header, about: header.update(crc=header["reason"], reason=header["crc"]),
        lambda header, about: header["shard_sequence"].update(
            data_offsets=header["shard_bytes"]["data_offsets"]
        ),
        lambda header, about: header["flags"].update(data_offsets=header["crc"]["data_offsets"][:1] * 2),
    ],
)
def test_a_forged_snapshot_is_refused(
    tmp_path: Path, eager: None, change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> None:
    busy_store(tmp_path / "s")
    change_snapshot(tmp_path / "s", change)
    with pytest.raises(CorruptionError):
        EmbeddingStore.open(tmp_path / "s")


def test_a_snapshot_of_shards_under_unknown_numerics_is_refused(tmp_path: Path, eager: None) -> None:
    store = make_store(tmp_path / "s")
    with store.writer() as writer:
        writer.decide_numerics({"threads": 1})
        writer.commit_shard(0, embeddings={0: embedding(0)}, input_digests={0: DIGEST})
    change_snapshot(tmp_path / "s", lambda header, about: about)
    assert EmbeddingStore.open(tmp_path / "s").committed.tolist()[:2] == [True, False]
    change_snapshot(tmp_path / "s", lambda header, about: about.update(numerics=[]))
    with pytest.raises(CorruptionError, match="unknown numerics"):
        EmbeddingStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    "head", [b"", b"\xff" * 8, (100).to_bytes(8, "little") + b"[" * 100, bytes(8) + b"{}"]
)
def test_a_snapshot_with_a_mad_header_is_refused(tmp_path: Path, eager: None, head: bytes) -> None:
    busy_store(tmp_path / "s")
    file = compacted(tmp_path / "s")
    assert file is not None
    write_snapshot(tmp_path / "s", file, head)
    with pytest.raises(CorruptionError):
        EmbeddingStore.open(tmp_path / "s")


@pytest.mark.parametrize("flag", [4, 0x7F, 0xFF, 2])
def test_a_tile_in_a_state_that_there_is_not_is_refused(tmp_path: Path, eager: None, flag: int) -> None:
    busy_store(tmp_path / "s")
    file = compacted(tmp_path / "s")
    assert file is not None
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    place = 8 + length + json.loads(data[8 : 8 + length])["flags"]["data_offsets"][0]
    data[place] = flag
    write_snapshot(tmp_path / "s", file, bytes(data))
    with pytest.raises(CorruptionError, match="without a reason" if flag == 2 else "state"):
        EmbeddingStore.open(tmp_path / "s")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "snapshot-1.safetensors/..", "", 3])
def test_a_snapshot_is_never_looked_for_elsewhere(tmp_path: Path, eager: None, name: object) -> None:
    busy_store(tmp_path / "s")
    (_, about), (_, record) = journal_records(tmp_path / "s" / "journal" / CREATED)
    lines = encode_line(about), encode_line({**record, "file": name})
    (tmp_path / "s" / "journal" / CREATED).write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptionError, match="malformed"):
        EmbeddingStore.open(tmp_path / "s")


def test_a_snapshot_that_cannot_be_read_is_a_refusal_not_damage(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = busy_store(tmp_path / "s")
    file = compacted(tmp_path / "s")
    assert file is not None

    def refuse(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(StorageError, match="Cannot read"):
        store.recorded_inputs()
    with pytest.raises(StorageError, match="Cannot read"):
        EmbeddingStore.open(tmp_path / "s")
    monkeypatch.setattr("embedcache.store.journal.snapshot.open_inside", refuse)
    with pytest.raises(StorageError, match="Cannot read"):
        EmbeddingStore.open(tmp_path / "s")
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(CorruptionError, match="shorter"):
        store.recorded_inputs()


def test_the_bytes_of_the_store_are_the_same_compacted_or_not(tmp_path: Path, eager: None) -> None:
    busy_store(tmp_path / "a")
    compaction.COMPACT_BYTES = 1 << 30
    busy_store(tmp_path / "b")
    a, b = (
        {name: data for name, data in file_bytes(tmp_path / side).items() if not name.startswith("journal/")}
        for side in "ab"
    )
    assert a == b
