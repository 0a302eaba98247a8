"""Turns a damaged journal file into the list of its damaged lines, and a damaged line into what it was.

A line carries the CRC-32C of its bytes. A single flipped bit changes a CRC by a pattern that no other bit gives in
lines of such length, so the bit is found and turned back, and the line is then exactly what was written. Other
damage cannot be undone and is only named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from embedcache.store.journal.lines import TAIL_BYTES, decode_line, line_tail

_POLYNOMIAL = 0x82F63B78
_BREAK = 0x0A
_STRIDE = 4096


@dataclass(frozen=True)
class DamagedLine:
    """One or more damaged lines in a row that have to be mended together.

    Parameters
    ----------
    number : int
        Number of the (first) line in its file, from 1.
    offset, length : int
        Where the damage stands in the file; line breaks inside it count, the last one too.
    mended : bytes or None
        The bytes that were written; None where more than one bit is wrong.
    """

    number: int
    offset: int
    length: int
    mended: bytes | None


def damaged_lines(data: bytes) -> list[DamagedLine]:
    """The damaged lines of a journal file's bytes; a torn last line is none, as it was never acknowledged."""
    lines = data.split(b"\n")
    torn = lines.pop()
    found: list[DamagedLine] = []
    offset, number = 0, 0
    while number < len(lines):
        line, taken = lines[number], 1
        if decode_line(line) is None:
            mended = mend_line(line)
            if mended is None and number + 1 < len(lines):
                mended = _mend_split(line, lines[number + 1])
                taken = 1 if mended is None else 2
            length = len(b"\n".join(lines[number : number + taken])) + 1
            found.append(DamagedLine(number + 1, offset, length, mended))
        offset += sum(len(part) + 1 for part in lines[number : number + taken])
        number += taken
    if torn and _one_bit(torn[-1] ^ _BREAK) and decode_line(torn[:-1]) is not None:
        found.append(
            DamagedLine(number + 1, offset, len(torn), torn[:-1] + b"\n")
        )  # its line break is flipped
    return found


def mend(data: bytes, damage: list[DamagedLine]) -> bytes:
    """The file's bytes with every damaged line that can be mended as it was."""
    pieces, at = [], 0
    for line in damage:
        if line.mended is not None:
            pieces += [data[at : line.offset], line.mended]
            at = line.offset + line.length
    return b"".join([*pieces, data[at:]])


def mend_line(line: bytes) -> bytes | None:
    """A damaged line (without its line break) as it was written, with its line break; None where it cannot be."""
    for candidate in (*_mend_tail(line), *_mend_body(line), *_mend_joined(line)):
        if all(decode_line(part) is not None for part in candidate.split(b"\n")):
            return candidate + b"\n"
    return None


def _mend_tail(line: bytes) -> Iterator[bytes]:
    """The bit stands in the checksum itself, or in the letters around it."""
    body, tail = line[:-TAIL_BYTES], line[-TAIL_BYTES:]
    right = line_tail(body)
    if len(tail) == len(right) and sum(bin(a ^ b).count("1") for a, b in zip(tail, right, strict=True)) == 1:
        yield body + right


def _mend_body(line: bytes) -> Iterator[bytes]:
    """The bit stands in the record: run the difference of the checksums back until it is that of one bit."""
    body, tail = line[:-TAIL_BYTES], line[-TAIL_BYTES:]
    try:
        recorded = int(tail[-10:-2], 16)
    except ValueError:
        return
    if line_tail(body)[:-10] != tail[:-10] or line_tail(body)[-2:] != tail[-2:]:
        return
    found = flipped_bit(len(body), int(line_tail(body)[-10:-2], 16) ^ recorded)
    if found is not None:
        place, mask = found
        yield body[:place] + bytes([body[place] ^ mask]) + body[place + 1 :] + tail


def _mend_joined(line: bytes) -> Iterator[bytes]:
    """The bit turned the break between two lines into a letter: they look like one."""
    at = line.find(b'"}')
    while at >= 0:
        end = at + 2
        broken = end < len(line) and _one_bit(line[end] ^ _BREAK)
        if broken and decode_line(line[:end]) is not None:
            yield line[:end] + b"\n" + line[end + 1 :]
        at = line.find(b'"}', end)


def _mend_split(first: bytes, second: bytes) -> bytes | None:
    """The bit turned a letter into a line break: one line looks like two."""
    for bit in range(8):
        candidate = first + bytes([_BREAK ^ (1 << bit)]) + second
        if decode_line(candidate) is not None:
            return candidate + b"\n"
    return None


def _one_bit(value: int) -> bool:
    return value != 0 and value & (value - 1) == 0


def flipped_bit(length: int, difference: int) -> tuple[int, int] | None:
    """Which bit of so many bytes changes their CRC-32C by ``difference``; None where no single one does.

    Run back from the end of the data, byte by byte, the difference becomes that of a bit in the last byte when as
    many bytes have been gone through as follow the flipped one. The first steps are kept in a table; the others
    are taken many at a time, as running back is linear.

    Returns
    -------
    (int, int) or None
        Place of the byte, and the mask of its bit.
    """
    traces, columns = _traces()
    for behind in range(0, length, _STRIDE):
        found = traces.get(difference)
        if found is not None and behind + found[0] < length:
            return length - 1 - behind - found[0], found[1]
        difference = _combined(columns, difference)
    return None


def _combined(columns: list[int], value: int) -> int:
    """A linear map of 32 bits, given by what it makes of each of them, of a value."""
    result = 0
    while value:
        lowest = value & -value
        result ^= columns[lowest.bit_length() - 1]
        value ^= lowest
    return result


@cache
def _traces() -> tuple[dict[int, tuple[int, int]], list[int]]:
    """What a bit of each of the last bytes does to the CRC, and what running back that many bytes does to one."""
    table, back = _tables()
    traces: dict[int, tuple[int, int]] = {}
    for bit in range(8):
        value = table[1 << bit]
        for behind in range(_STRIDE):
            traces[value] = behind, 1 << bit
            value = table[value & 0xFF] ^ (value >> 8)
    columns = []
    for bit in range(32):
        value = 1 << bit
        for _ in range(_STRIDE):
            low = back[value >> 24]
            value = (((value ^ table[low]) << 8) | low) & 0xFFFFFFFF
        columns.append(value)
    return traces, columns


@cache
def _tables() -> tuple[list[int], list[int]]:
    """CRC-32C's table of bytes, and which entry has which highest byte (each has its own)."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    back = [0] * 256
    for number, value in enumerate(table):
        back[value >> 24] = number
    return table, back
