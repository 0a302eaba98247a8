"""Only damaged lines are dropped, and only those without which the others mean the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.store.care.dropping import DROPPABLE, KnownNumerics, drop_lines, kinds_of
from embedcache.store.journal.lines import decode_line, encode_line

NUMERICS = [{"threads": 1}, {"threads": 2}]
RECORDS: list[dict[str, Any]] = [
    {"kind": "numerics", "numerics": NUMERICS[0], "seq": 2},
    {"kind": "selection", "selection": {"z_range": "0:2"}, "wanted": {"bits": "", "count": 0}, "seq": 3},
    {"kind": "shard", "shard": 0, "slots": "AQ==", "numerics": 0, "seq": 4},
    {"kind": "changed", "volume": {"kind": "npy"}, "seq": 5},
    {"kind": "numerics", "numerics": NUMERICS[1], "seq": 6},
    {"kind": "intent", "shard": 7, "slots": "AQ==", "seq": 7},
    {"kind": "certificate", "certificate": {"kind": "x"}, "seq": 8},
    {"kind": "table", "tiles": 9, "images": [], "seq": 9},
]
LINES = [encode_line(record).encode() for record in RECORDS]
KNOWN = KnownNumerics((), NUMERICS, 2)


def spoiled(line: bytes) -> bytes:
    return line.replace(b"{", b"[", 1).replace(b"}", b"]")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['kind']} {record['seq']}")
def test_a_damaged_line_is_dropped_where_no_other_depends_on_it(record: dict[str, Any]) -> None:
    lines = [spoiled(line) if decode_line(line) == record else line for line in LINES]
    kept, dropped = drop_lines(b"\n".join([*lines, b""]), KNOWN)
    found = [decode_line(line) for line in kept.split(b"\n")[:-1]]
    if record["kind"] in DROPPABLE - {"certificate"}:  # this one says a kind of its own, so it is not sure
        assert len(dropped) == 1
        others = [other for other in RECORDS if other != record]
        restored = [
            {**record, "seq": found[at]["seq"]} for at in range(len(found)) if found[at] not in others
        ]  # type: ignore[index]
        assert [other for other in found if other in others] == others
        assert [{**other, "seq": 0} for other in restored] == (
            [{**record, "seq": 0}] if record["kind"] == "numerics" else []
        )
    else:
        assert (kept.split(b"\n")[:-1], dropped) == (lines, [])


def test_the_numbers_of_records_never_fall_where_numerics_come_back() -> None:
    for number in (0, 4):
        lines = [spoiled(line) if at == number else line for at, line in enumerate(LINES)]
        kept, _ = drop_lines(b"\n".join([*lines, b""]), KNOWN)
        numbers = [json.loads(line)["seq"] for line in kept.split(b"\n")[:-1]]
        assert numbers == sorted(numbers)
        assert numbers[number] <= RECORDS[number]["seq"]  # what refers to them comes later


def test_two_lines_that_look_like_one_are_both_named() -> None:
    line = spoiled(LINES[2]) + b"?" + LINES[5]
    kept, (dropped,) = drop_lines(b"\n".join([line, b""]), KnownNumerics((), (), 2))
    assert (kept, dropped.kinds, dropped.shards) == (b"", ("shard", "intent"), (0, 7))
    hidden = spoiled(LINES[2]) + b"?" + LINES[3].replace(b'"kind":"changed"', b'"kinx":"changed"')
    assert kinds_of(hidden) == ()
    zeros = LINES[2][:40] + bytes(60) + LINES[3][60:]
    assert kinds_of(zeros) == ()


def test_numerics_stay_where_the_copies_do_not_fit() -> None:
    data = b"\n".join([spoiled(LINES[0]), *LINES[1:], b""])
    for copied in ([], NUMERICS[:1], [NUMERICS[0], {"threads": 3}], [*NUMERICS, {"threads": 3}]):
        assert drop_lines(data, KnownNumerics((), copied, 2)) == (data, [])


@given(
    st.lists(
        st.tuples(st.integers(0, len(b"\n".join(LINES)) - 1), st.integers(1, 255)), min_size=2, max_size=6
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_damaged_no_record_becomes_another_one(harm: list[tuple[int, int]]) -> None:
    data = bytearray(b"\n".join([*LINES, b""]))
    for place, value in harm:
        data[place] ^= value
    kept, _ = drop_lines(bytes(data), KNOWN)
    before = [record for line in bytes(data).split(b"\n") if (record := decode_line(line)) is not None]
    after = [record for line in kept.split(b"\n") if (record := decode_line(line)) is not None]
    assert [record for record in after if record in before] == before
    assert all(record["numerics"] in NUMERICS for record in after if record not in before)
    assert [record["numerics"] for record in after if record["kind"] == "numerics"] in (
        NUMERICS,
        [record["numerics"] for record in before if record["kind"] == "numerics"],
    )
