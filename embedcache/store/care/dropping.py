"""Turns a journal file with lines that cannot be mended into one without them, where no more is lost than these.

A line may go when it can still be told that it spoke of shards, of what was asked for, or of a certificate: then
embeddings are missing, and are encoded again. Numerics come back from the copy that the group's metadata has. A
line that may have said what the store is, which tiles there are, or that pixels changed stays: without it, others
would mean something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.store.journal.lines import decode_line, encode_line

Numerics = Mapping[str, Any]

NUMERICS = "numerics"
DROPPABLE = {"shard", "intent", "selection", "certificate", NUMERICS}
"""Kinds of records without which all others mean the same."""

UNPRINTABLE = 8
"""Bytes of a line that are no text above which it is more than a line with a few wrong bits: two lines in one?"""

_KIND = re.compile(rb'"kind":"([^"]*)"')
_SHARD = re.compile(rb'"shard":([0-9]{1,9})\b')
_ENDS = (b'"seq":', b'"crc32c":"')


@dataclass(frozen=True)
class DroppedLine:
    """A damaged line that was left out.

    Parameters
    ----------
    number : int
        Of the line in its file, from 1.
    kinds : tuple of str
        Of the records that stood in it: more than one where a line break was among what is damaged.
    shards : tuple of int
        Shards of which it spoke, as far as it can be read.
    """

    number: int
    kinds: tuple[str, ...]
    shards: tuple[int, ...]

    @property
    def words(self) -> str:
        """What it was, in words."""
        shards = "".join(f", of shard {shard}" for shard in self.shards)
        return f"line {self.number} ({' and '.join(self.kinds)}{shards})"


@dataclass(frozen=True)
class KnownNumerics:
    """What there is to bring lost numerics back from.

    Parameters
    ----------
    before : sequence of dict
        Those that stand before the file's first line: in the snapshot.
    copied : sequence of dict
        All of the store, as its group's metadata has them.
    sequence : int
        The number that a record of the file has at least.
    """

    before: Sequence[Numerics]
    copied: Sequence[Numerics]
    sequence: int


def drop_lines(data: bytes, known: KnownNumerics) -> tuple[bytes, list[DroppedLine]]:
    """A journal file without the damaged lines that may go; the others stay as they are.

    Parameters
    ----------
    data : bytes
        The file; what can be mended is mended.
    known : KnownNumerics
        Where numerics come back from.
    """
    *lines, torn = data.split(b"\n")
    lost = _lost_numerics(lines, known)
    kept: list[bytes] = []
    dropped: list[DroppedLine] = []
    sequence = known.sequence
    for number, line in enumerate(lines, start=1):
        record = decode_line(line)
        kinds = () if record is not None else kinds_of(line)
        if record is not None:
            sequence = max(sequence, int(record.get("seq", 0)))
        if not kinds or (lost is None and NUMERICS in kinds):
            kept.append(line)
            continue
        for _ in range(kinds.count(NUMERICS)):
            assert lost is not None
            again = {"kind": NUMERICS, NUMERICS: lost.pop(0), "seq": sequence}
            kept.append(encode_line(again).encode("ascii"))
        shards = tuple(int(found) for found in _SHARD.findall(line))
        dropped.append(DroppedLine(number, kinds, shards))
    return b"\n".join([*kept, torn]), dropped


def kinds_of(line: bytes) -> tuple[str, ...]:
    """Kinds of the records that stand in a damaged line; none where it may have held one that must not be lost."""
    kinds = tuple(found.decode("latin-1") for found in _KIND.findall(line))
    whole = all(line.count(end) <= len(kinds) for end in _ENDS)
    text = sum(not 32 <= byte < 127 for byte in line) <= UNPRINTABLE
    outer = tuple(kind for kind in kinds if kind in DROPPABLE)
    return outer if whole and text and outer == kinds else ()


def _lost_numerics(lines: Sequence[bytes], known: KnownNumerics) -> list[Numerics] | None:
    """The numerics that damaged lines held, in order; None where the copies do not fit those that can be read."""
    there: list[Numerics | None] = [*known.before]
    for line in lines:
        record = decode_line(line)
        if record is None:
            there += [None] * kinds_of(line).count(NUMERICS)
        elif record.get("kind") == NUMERICS:
            there.append(record[NUMERICS])
    if len(there) != len(known.copied):
        return None
    pairs = list(zip(there, known.copied, strict=True))
    if any(found is not None and found != copy for found, copy in pairs):
        return None
    return [copy for found, copy in pairs if found is None]
