"""A damaged journal line is named, and one flipped bit is turned back, wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest

from embedcache.store.care.journal_damage import damaged_lines, mend, mend_line
from embedcache.store.journal.lines import decode_line, encode_line

LINES = [
    encode_line({"kind": "table", "tiles": 5, "images": [], "seq": 0}).encode(),
    encode_line(
        {"kind": "shard", "crcs": "vWuEeQJ*" * 40, "failed": {'a "}x" reason': [0]}, "seq": 1}
    ).encode(),
    encode_line({"kind": "selection", "selection": {}, "seq": 2}).encode(),
]
FILE = b"".join(line + b"\n" for line in LINES)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_whole_file_has_no_damage() -> None:
    assert damaged_lines(FILE) == []
    assert mend(FILE, []) == FILE


def test_every_single_flipped_bit_of_a_file_is_found_and_turned_back() -> None:
    for bit in range(len(FILE) * 8):
        data = flipped(FILE, bit)
        damage = damaged_lines(data)
        assert damage, bit
        assert mend(data, damage) == FILE, bit


def test_the_number_of_a_damaged_line_is_said() -> None:
    data = flipped(FILE, (len(LINES[0]) + 20) * 8)
    assert [line.number for line in damaged_lines(data)] == [2]


@pytest.mark.parametrize("seed", range(20))
def test_more_than_one_flipped_bit_in_a_line_is_found_and_never_guessed(seed: int) -> None:
    bits = np.random.default_rng(seed).choice(len(LINES[1]) * 8, size=2 + seed % 5, replace=False)
    data = LINES[1]
    for bit in bits:
        data = flipped(data, int(bit))
    if b"\n" in data:
        pytest.skip("a line break is another damage")
    assert mend_line(data) is None
    damage = damaged_lines(LINES[0] + b"\n" + data + b"\n")
    assert [(line.number, line.mended) for line in damage] == [(2, None)]
    assert mend(data + b"\n", damaged_lines(data + b"\n")) == data + b"\n"


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_torn_last_line_is_no_damage(cut: int) -> None:
    assert damaged_lines(FILE[:-cut]) == []


def test_two_damaged_lines_are_mended_each_for_itself() -> None:
    data = flipped(flipped(FILE, 80), (len(FILE) - 10) * 8)
    assert mend(data, damaged_lines(data)) == FILE


def test_garbage_is_damage_that_cannot_be_mended() -> None:
    for garbage in (
        b"x",
        b"",
        b"\0" * 100,
        b'{"crc32c":"zzzzzzzz"}',
        LINES[0][:-12] + b"zzzzzzzz" + LINES[0][-2:],
    ):
        damage = damaged_lines(garbage + b"\n" + LINES[0] + b"\n")
        assert [line.mended for line in damage] == [None]
        assert decode_line(garbage) is None


def test_a_lost_line_break_is_not_put_back_where_the_rest_is_no_line() -> None:
    assert mend_line(LINES[0] + b"\x0b" + LINES[1][:-30]) is None
