"""The journal: a line holds or is seen not to; a torn tail is forgiven, nothing else is."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import journal_records

from embedcache.errors import CorruptionError, StorageError
from embedcache.files import append_line
from embedcache.store.journal.file import JournalFile, append_record, journal_files, read_record
from embedcache.store.journal.lines import decode_line, encode_line, line_tail
from embedcache.store.journal.packing import pack, pack_flags, unpack_flags
from embedcache.store.journal.record import ShardRecord

records = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "crc32c"),
    st.integers() | st.text(max_size=20),
    max_size=4,
).map(lambda values: {"kind": "x", **values})


@given(records)
def test_a_record_survives_its_line_which_is_plain_json(record: dict[str, Any]) -> None:
    line = encode_line(record)
    assert decode_line(line.encode()) == record
    assert {name: value for name, value in json.loads(line).items() if name != "crc32c"} == record


@given(records, st.data())
def test_any_flipped_bit_of_a_line_is_found(record: dict[str, Any], data: st.DataObject) -> None:
    line = bytearray(encode_line(record).encode())
    bit = data.draw(st.integers(0, 8 * len(line) - 1))
    line[bit // 8] ^= 1 << bit % 8
    assert decode_line(bytes(line)) is None


@given(st.lists(records, min_size=1, max_size=4), st.data())
@settings(max_examples=30, deadline=None)
def test_a_journal_cut_anywhere_gives_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], data: st.DataObject
) -> None:
    lines = [encode_line(record).encode() + b"\n" for record in written]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("journal") / "main.jsonl"
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert [record for _, record in journal_records(path)] == written[:kept]
    append_line(path, encode_line({"kind": "next"}))
    assert [record for _, record in journal_records(path)] == [*written[:kept], {"kind": "next"}]


@pytest.mark.parametrize("body", [b"[1", b'{"a":' + b"[" * 100_000, b'"a"', b"{a"])
def test_a_line_of_a_right_checksum_that_is_no_object_is_none(body: bytes) -> None:
    assert decode_line(body + line_tail(body)) is None


def test_a_damaged_line_in_the_middle_is_corruption_and_named(tmp_path: Path) -> None:
    path = tmp_path / "main.jsonl"
    lines = [encode_line({"kind": "x", "n": n}) for n in range(3)]
    lines[1] = lines[1].replace('"n":1', '"n":7')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptionError, match="line 2"):
        list(journal_records(path))


@pytest.mark.parametrize("garbage", [b"\x00" * 100, b"{}", b""])
def test_a_last_line_with_its_break_that_is_wrong_is_corruption_not_torn(
    tmp_path: Path, garbage: bytes
) -> None:
    path = tmp_path / "main.jsonl"
    path.write_bytes(encode_line({"kind": "x"}).encode() + b"\n" + garbage + b"\n")
    with pytest.raises(CorruptionError, match="line 2"):
        list(journal_records(path))


def test_records_can_be_read_again_even_when_the_file_has_lost_its_name(tmp_path: Path) -> None:
    path = tmp_path / "main.jsonl"
    for n in range(3):
        append_record(tmp_path, path, {"kind": "x", "n": n})
    places = [place for place, _ in journal_records(path)]
    path.unlink()
    assert [read_record(place) for place in places] == [{"kind": "x", "n": n} for n in range(3)]


def test_a_record_that_changed_since_is_corruption(tmp_path: Path) -> None:
    append_record(tmp_path, tmp_path / "main.jsonl", {"kind": "x"})
    place, _ = next(journal_records(tmp_path / "main.jsonl"))
    place.path.write_bytes(b" " * place.length)
    with pytest.raises(CorruptionError, match="checksum"):
        read_record(place)


@given(st.sets(st.integers(0, 12)), st.data())
def test_a_shard_record_survives_its_json(slots: set[int], data: st.DataObject) -> None:
    order = np.array(sorted(slots), dtype=np.int64)
    rest = sorted(set(range(13)) - slots)
    reasons = {slot: data.draw(st.text(max_size=5)) for slot in rest}
    record = ShardRecord(
        shard=4,
        slots=order,
        crc=(order * 1000).astype(np.uint32),
        minimum=(-order).astype(np.float16),
        maximum=order.astype(np.float16),
        inputs=pack(b"".join(bytes([slot]) * 32 for slot in order.tolist())),
        skipped=dict(list(reasons.items())[::2]),
        failed=dict(list(reasons.items())[1::2]),
        digest="sha256:" + "0" * 64,
        size=9,
        numerics=1,
        writer="w",
        seconds={"encode": 0.5},
    )
    again = ShardRecord.from_dict(json.loads(json.dumps(record.to_dict(13))), 13)
    assert again.to_dict(13) == record.to_dict(13)
    assert [again.digest_of(at) for at in range(len(order))] == [
        f"{slot:02x}" * 32 for slot in order.tolist()
    ]


@given(st.lists(st.booleans(), max_size=300))
def test_flags_survive_packing(flags: list[bool]) -> None:
    array = np.array(flags, dtype=np.bool_)
    assert np.array_equal(unpack_flags(json.loads(json.dumps(pack_flags(array))), 300), array)


@pytest.mark.parametrize(
    "change", [{"count": 10**12}, {"count": -1}, {"bits": "??"}, {"bits": ""}, {"count": "x"}, {"count": 800}]
)
def test_flags_that_are_malformed_or_too_many_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(CorruptionError):
        unpack_flags(pack_flags(np.ones(20, np.bool_)) | change, 1000)


def test_the_line_in_the_documentation_is_a_real_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    line = text.split("```json\n")[1].split("\n")[0]
    record = decode_line(line.encode())
    assert record is not None
    assert encode_line(record) == line
    shard = ShardRecord.from_dict(record, 2)
    assert shard.slots.tolist() == [1]
    assert shard.failed == {0: "not finite"}


def test_a_folder_that_is_not_there_holds_no_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert journal_files(tmp_path / "nothing") == journal_files(tmp_path / "file") == []


@pytest.mark.parametrize(
    ("number", "told", "why"),
    [
        (errno.ESTALE, FileNotFoundError, r"main\.jsonl"),  # NFS: another host has removed it
        (errno.EIO, StorageError, "Input/output error"),
    ],
)
def test_an_open_journal_file_that_is_gone_on_a_server_is_gone_a_failing_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: type[Exception], why: str
) -> None:
    path = tmp_path / "main.jsonl"
    append_record(tmp_path, path, {"kind": "x"})
    file = JournalFile(tmp_path, path)

    real, held = os.fstat, file._descriptor

    def refuse(descriptor: int) -> os.stat_result:
        if descriptor == held:
            raise OSError(number, os.strerror(number))
        return real(descriptor)

    opened = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", refuse)
        with pytest.raises(told, match=why):
            file.reopen()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    file.reopen()
    assert [record for _, record in file.records()] == [{"kind": "x"}]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
