"""The state of a store: what records say, in the order of their numbers; what makes no sense is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import DIGEST, IMAGES, commit, embedding, make_store

from embedcache.errors import CorruptionError, InputError, MismatchError, StorageError
from embedcache.store import EmbeddingStore
from embedcache.store.journal import file, lines
from embedcache.store.journal.file import JournalFile
from embedcache.store.journal.lines import encode_line
from embedcache.store.journal.packing import pack, pack_flags
from embedcache.store.journal.record import ShardRecord, is_name, table_record
from embedcache.store.journal.replay import read_state
from embedcache.store.shards.shard import FLOAT16
from embedcache.volume.volume import ImageRecord


def write(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a") as stream:
        stream.writelines(encode_line(record) + "\n" for record in records)


def shard(number: int, held: Iterable[int], seq: int, **changes: Any) -> dict[str, Any]:
    """A shard record of a store with two tiles a shard; its crcs tell its number."""
    chosen = np.array(sorted(held), dtype=np.int64)
    record = ShardRecord(
        shard=number,
        slots=chosen,
        crc=np.full(len(chosen), seq % 2**32, np.uint32),
        minimum=np.zeros(len(chosen), np.float16),
        maximum=np.zeros(len(chosen), np.float16),
        inputs=pack(bytes.fromhex(DIGEST) * len(chosen)),
    )
    return {**record.to_dict(2), "seq": seq, **changes}


def changed(seq: int, gone: Iterable[int], **changes: Any) -> dict[str, Any]:
    flags = np.zeros(5, np.bool_)
    flags[list(gone)] = True
    record = {
        "kind": "changed",
        "volume": None,
        "images": [],
        "fingerprint": "sha256:x",
        "stale": pack_flags(flags),
    }
    return {**record, "seq": seq, **changes}


# ---- order


@given(
    st.lists(st.tuples(st.sampled_from(["shard", "changed"]), st.sets(st.integers(0, 1))), max_size=8),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_records_count_by_their_numbers_whatever_files_they_stand_in(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, set[int]]], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("s")
    make_store(root)
    expected, raw = set[int](), set[int]()
    for seq, (kind, slots) in enumerate(said, start=2):
        if kind == "shard":
            expected, raw = set(slots), set(slots)
            write(
                root / "journal" / data.draw(st.sampled_from(["a.jsonl", "main.jsonl", "z.jsonl"])),
                shard(0, slots, seq),
            )
        else:
            expected -= slots
            write(root / "journal" / "main.jsonl", changed(seq, slots))
    state = read_state(root, 2)
    assert set(np.flatnonzero(state.flags).tolist()) == expected
    record = state.shard_record(0)
    if record is not None:
        assert set(record.slots.tolist()) == expected
        assert set(record.stored.slots.tolist()) == raw


def test_a_part_may_refer_to_what_was_journalled_for_the_whole_store_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that looked at main.jsonl first would meet a shard of images of which it has not heard."""
    make_store(tmp_path, n=2, images=IMAGES[:2])
    write(tmp_path / "journal" / "main.jsonl", {"kind": "numerics", "numerics": {}, "seq": 2})
    write(tmp_path / "journal" / "shards-00000000-00000009.jsonl", shard(0, [0], 3))
    real, grown = JournalFile.size.fget, []

    def grow_after_the_first_look(file: JournalFile) -> int:
        found = real(file)  # type: ignore[misc]
        if not grown:
            grown.append(file)
            write(tmp_path / "journal" / "main.jsonl", table_record(4, IMAGES[2:]) | {"seq": 4})
            write(tmp_path / "journal" / "shards-00000000-00000009.jsonl", shard(1, [1], 5))
        return found

    monkeypatch.setattr(JournalFile, "size", property(grow_after_the_first_look))
    state = read_state(tmp_path, 2)
    assert grown[0].path.name != "main.jsonl"
    assert state.flags.tolist() in ([1, 0], [1, 0, 0, 0])
    assert read_state(tmp_path, 2).flags.tolist() == [1, 0, 0, 1]


def test_a_writer_that_mends_a_line_while_we_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    path = tmp_path / "journal" / "main.jsonl"
    torn, whole = (
        b'{"kind":"sel',
        encode_line({"kind": "numerics", "numerics": {}, "seq": 2}).encode() + b"\n",
    )
    path.write_bytes(whole)
    real, first = os.pread, []

    def read_in_the_middle(descriptor: int, length: int, offset: int) -> bytes:
        data = real(descriptor, length, offset)
        if data == whole and not first:
            first.append(data)
            return (
                torn + data[len(torn) :]
            )  # the torn line as it was, and what was written over it and beyond
        return data

    monkeypatch.setattr(os, "pread", read_in_the_middle)
    assert read_state(tmp_path, 2).numerics == [{}]
    assert first


def test_a_file_that_is_gone_before_it_is_opened_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    lists = [[tmp_path / "journal" / "main.jsonl"], []]
    monkeypatch.setattr("embedcache.store.journal.replay.journal_files", lambda folder: lists.pop(0))
    assert read_state(tmp_path, 2).n_tiles == 5
    assert not lists


def test_damage_in_a_journal_that_is_replaced_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    created = tmp_path / "journal" / "created.jsonl"
    good = created.read_bytes()
    created.write_bytes(b"x" + good)

    def replaced(file: JournalFile) -> bool:
        created.write_bytes(good)
        monkeypatch.undo()
        return False

    monkeypatch.setattr(JournalFile, "is_current", replaced)
    assert read_state(tmp_path, 2).n_tiles == 5


def test_of_two_records_of_one_number_the_first_holds(tmp_path: Path) -> None:
    make_store(tmp_path)
    write(tmp_path / "journal" / "a.jsonl", shard(0, [0], 5))
    write(tmp_path / "journal" / "b.jsonl", shard(0, [1], 5), {**shard(0, [1], 5), "kind": "intent"})
    state = read_state(tmp_path, 2)
    assert state.flags.tolist() == [1, 0, 0, 0, 0]
    assert not state.intents


def test_a_store_of_int8_grows_with_its_scales(tmp_path: Path) -> None:
    make_store(tmp_path, n=2, images=IMAGES[:2])
    main = tmp_path / "journal" / "main.jsonl"
    write(main, shard(0, [1], 5, scale_crcs=pack(b"abcd")), table_record(4, IMAGES[2:]) | {"seq": 6})
    state = read_state(tmp_path, 2)
    assert state.scale_crc is not None
    assert state.scale_crc.tolist() == [0, int.from_bytes(b"abcd", "little"), 0, 0]
    assert state.accepted(1) == {(5, int.from_bytes(b"abcd", "little"))}


# ---- what makes no sense


@pytest.mark.parametrize(
    "record",
    [
        shard(0, [0], -1),
        shard(0, [0], 9) | {"seq": "9"},
        shard(-1, [0], 9),
        shard(10**30, [0], 9),
        shard(2, [1], 9),
        shard(0, [0], 9, slots=""),
        shard(0, [0], 9, slots="////"),
        shard(0, [0], 9, crcs=""),
        shard(0, [0], 9, scale_crcs=""),
        shard(0, [0], 9, inputs=""),
        shard(0, [0], 9, digest="sha256:../../x"),
        shard(0, [0], 9, bytes=-1),
        shard(0, [0], 9, numerics="x"),
        shard(0, [0], 9, numerics=0),
        shard(0, [0], 9, numerics=0, kind="intent"),
        shard(0, [0], 9, skipped={"x": [2]}),
        shard(0, [0], 9, failed={"x": ["a"]}),
        shard(0, [0], 9, stale="AAAA"),
        shard(2, [], 9, failed={"x": [1]}),
        {"kind": "intent", "seq": 9, "shard": 0},
        changed(9, [0], images=[[0, IMAGES[0].to_dict()]]),
        changed(9, [0], volume=3),
        changed(9, [0], stale={"count": 6, "bits": ""}),
        {"kind": "changed", "seq": 9},
        {"kind": "store", "seq": 9, "attributes": 3},
        {"kind": "certificate", "seq": 9, "certificate": None},
        {"kind": "snapshot", "seq": 9, "file": "snapshot-1.safetensors", "bytes": 1, "file_crc32c": ""},
        {"kind": "table", "seq": 9, "tiles": 4, "images": []},
        {"kind": "table", "seq": 9, "tiles": 2**31, "images": []},
        {"kind": "table", "seq": 9, "tiles": 4097, "images": []},
        {"kind": "numerics", "seq": 2**63, "numerics": {}},
    ],
)
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, record: dict[str, Any]) -> None:
    make_store(tmp_path)
    write(tmp_path / "journal" / "main.jsonl", record)
    with pytest.raises(CorruptionError):
        EmbeddingStore.open(tmp_path)


def test_numbers_that_fall_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path)
    write(tmp_path / "journal" / "main.jsonl", shard(0, [0], 9), shard(0, [1], 8))
    with pytest.raises(CorruptionError, match="not numbered"):
        EmbeddingStore.open(tmp_path)


def test_a_change_of_what_was_never_said_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path)
    lines = (tmp_path / "journal" / "created.jsonl").read_text().splitlines()
    (tmp_path / "journal" / "created.jsonl").write_text(lines[1] + "\n")
    write(tmp_path / "journal" / "main.jsonl", changed(9, [0]))
    with pytest.raises(CorruptionError, match="was before"):
        EmbeddingStore.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("a.png", True),
        ("räume/ø 1.tif", True),
        ("a\u00a0b.png", True),
        ("..png", True),
        ("../a.png", False),
        ("a/../b.png", False),
        ("a/./b.png", False),
        ("/a.png", False),
        ("a//b.png", False),
        ("a/", False),
        ("", False),
        ("a\x00.png", False),
        ("a\n.png", False),
        ("a\x7f.png", False),
        ("a" * 5000, False),
    ],
)
def test_names_that_could_lead_elsewhere_are_refused_on_both_sides(
    tmp_path: Path, name: str, fine: bool
) -> None:
    assert is_name(name) == fine
    image = ImageRecord(name, 3, 3, "0" * 64)
    if fine:
        assert make_store(tmp_path, images=[image]).images == (image,)
        return
    with pytest.raises(InputError, match="control characters"):
        make_store(tmp_path / "new", images=[image])
    make_store(tmp_path / "s")
    write(
        tmp_path / "s" / "journal" / "main.jsonl",
        {"kind": "table", "tiles": 5, "images": [image.to_dict()], "seq": 9},
    )
    with pytest.raises(CorruptionError, match="no name of ours"):
        EmbeddingStore.open(tmp_path / "s")


@pytest.mark.parametrize("side", [0, -1, 2**40])
def test_images_of_no_size_are_refused(tmp_path: Path, side: int) -> None:
    make_store(tmp_path)
    image = {"name": "a", "height": side, "width": 3, "sha256": ""}
    write(tmp_path / "journal" / "main.jsonl", {"kind": "table", "tiles": 5, "images": [image], "seq": 9})
    with pytest.raises(CorruptionError, match="pixels"):
        EmbeddingStore.open(tmp_path)


def test_an_endless_line_is_refused_without_reading_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    for module in (file, lines):
        monkeypatch.setattr(module, "LINE_LIMIT", 1 << 20)
    with (tmp_path / "journal" / "main.jsonl").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptionError, match="longer"):
        EmbeddingStore.open(tmp_path)
    with pytest.raises(InputError, match="too long"):
        encode_line({"kind": "x" * (1 << 20)})


@pytest.mark.parametrize("text", ["", "\n", "{}\n"])
def test_a_journal_whose_first_file_says_nothing_is_corrupt(tmp_path: Path, text: str) -> None:
    make_store(tmp_path)
    (tmp_path / "journal" / "created.jsonl").write_text(text)
    with pytest.raises(CorruptionError):
        EmbeddingStore.open(tmp_path)


def test_a_journal_that_cannot_be_read_is_a_refusal_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)

    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(StorageError, match="Cannot read"):
            EmbeddingStore.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", refuse)
        with pytest.raises(StorageError, match="Cannot read"):
            EmbeddingStore.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        with pytest.raises(StorageError, match="Cannot read"):
            EmbeddingStore.open(tmp_path)


# ---- what the store says of itself


def test_attributes_that_differ_from_the_journal_are_corrupt_and_named(tmp_path: Path) -> None:
    make_store(tmp_path)
    text = (tmp_path / "zarr.json").read_text()
    (tmp_path / "zarr.json").write_text(text.replace("made up", "stolen"))
    with pytest.raises(CorruptionError, match=r"provenance\.source") as caught:
        EmbeddingStore.open(tmp_path)
    assert "embedcache repair" in str(caught.value)


def test_a_store_changed_between_two_looks_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    before = dict(store.attributes) | {"numerics": []}
    with store.writer() as writer:
        for kind in ("one", "two"):
            writer.change_source({"kind": kind}, [], np.zeros(5, np.bool_))
    from embedcache.store import store as module

    real, looks = module.read_attributes, [before]

    def look(root: Path) -> dict[str, Any]:
        return looks.pop() if looks else real(root)

    monkeypatch.setattr(module, "read_attributes", look)
    assert EmbeddingStore.open(tmp_path).spec.volume == {"kind": "two"}


def test_a_store_that_is_changed_all_the_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    from embedcache.store import store as module

    looks = [dict(store.attributes) | {"provenance": {"look": number}} for number in range(9)]
    monkeypatch.setattr(module, "read_attributes", lambda root: looks.pop())
    with pytest.raises(CorruptionError, match="differ"):
        EmbeddingStore.open(tmp_path)
    assert len(looks) > 2


def test_a_journal_whose_name_is_gone_while_it_is_read_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    created, real = tmp_path / "journal" / "created.jsonl", JournalFile.is_current

    def remove_first(file: JournalFile) -> bool:
        created.unlink(missing_ok=True)
        return real(file)

    monkeypatch.setattr(JournalFile, "is_current", remove_first)
    with pytest.raises(CorruptionError, match="is missing"):
        read_state(tmp_path, 2)


def test_a_newer_kind_of_record_is_named_as_such(tmp_path: Path) -> None:
    make_store(tmp_path)
    write(tmp_path / "journal" / "main.jsonl", {"kind": "moon", "seq": 9})
    with pytest.raises(MismatchError, match="moon"):
        EmbeddingStore.open(tmp_path)


def test_parts_of_a_store_are_all_of_it_each_once(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=9)
    for parts in (1, 2, 3, 5, 7):
        shards = [number for part in range(parts) for number in store.shard_range(part, parts)]
        assert shards == list(range(5))


def test_the_decoder_file_is_not_read_beyond_its_cap(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with (tmp_path / "decoder.safetensors").open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptionError, match="at most"):
        store.decoder_state()


# ---- records


def test_an_index_follows_from_the_record_alone() -> None:
    values = shard(0, [0, 1], 9)
    same = ShardRecord.from_dict(values, 2)
    assert same.index(2, FLOAT16).tolist() == [[0, FLOAT16.chunk_bytes]] * 2
    first_stores = ShardRecord.from_dict(values | {"bytes": FLOAT16.shard_bytes(2, 2)}, 2)
    assert first_stores.index(2, FLOAT16)[:, 0].tolist() == [0, FLOAT16.chunk_bytes]
    other = ShardRecord.from_dict(values | {"crcs": pack(b"12345678")}, 2)
    assert other.index(2, FLOAT16)[:, 0].tolist() == [0, FLOAT16.chunk_bytes]


@given(st.sets(st.integers(0, 1)), st.sets(st.integers(0, 1)), st.sets(st.integers(0, 1)), st.booleans())
def test_stale_tiles_stay_in_the_record_of_the_file(
    held: set[int], gone: set[int], later: set[int], scales: bool
) -> None:
    more = {"scale_crcs": pack(b"abcd" * len(held))} if scales else {}
    record = ShardRecord.from_dict(shard(0, held, 9, **more), 2)
    fewer = record.without(gone).without(later)
    assert set(fewer.slots.tolist()) == held - gone - later
    assert fewer.stored.to_dict(2) == record.to_dict(2)
    again = ShardRecord.from_dict(fewer.to_dict(2), 2)
    assert again.to_dict(2) == fewer.to_dict(2)
    assert (again.index(2, FLOAT16) == record.index(2, FLOAT16)).all()
    assert (again.stale is None) == (not held & (gone | later))


def test_a_store_that_is_full_of_reasons_keeps_each_once(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, skipped={0: "empty", 1: "masked"})
    commit(store, skipped={2: "empty"}, failed={3: "empty"})
    for seen in (store, EmbeddingStore.open(tmp_path)):
        assert seen.skip_reasons == {0: "empty", 1: "masked", 2: "empty"}
        assert seen.failed == {3: "empty"}
        assert seen.state.reasons == ["empty", "masked"]


def test_what_is_recorded_of_inputs_is_of_committed_tiles(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    numbers, digests = store.recorded_inputs()
    assert (numbers.shape, digests.shape) == ((0,), (0, 32))
    with store.writer() as writer:
        for tile in (3, 0):
            writer.commit_shard(
                tile // 2, embeddings={tile: embedding(tile)}, input_digests={tile: f"{tile:02x}" * 32}
            )
    numbers, digests = store.recorded_inputs()
    assert numbers.tolist() == [0, 3]
    assert [row.tobytes().hex() for row in digests] == ["00" * 32, "03" * 32]
