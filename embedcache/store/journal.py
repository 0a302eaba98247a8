"""Turns records into checksummed lines of an append-only file, and such files back into records.

A line is one JSON object whose last member is ``"crc32c"``: the CRC-32C, as 8 hex digits, of all bytes of the
line before ``,"crc32c":``. The last line of a file may be torn (its writer was killed before the line was
acknowledged): it is dropped. Any other line that differs from its checksum is corruption.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import CorruptionError
from embedcache.files import append_line, canonical_json, crc32c, cut_file, read_error

CREATED = "created.jsonl"
"""Journal file that is written whole when the store is created."""

MAIN = "main.jsonl"
"""Journal file of the writer that holds the whole store."""

_MARK = b',"crc32c":"'
_TAIL = len(_MARK) + len('00000000"}')


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: file, offset of its line, length of the line without the line break."""

    path: Path
    offset: int
    length: int


def encode_line(record: Mapping[str, Any]) -> str:
    """One journal line, without its line break."""
    body = canonical_json(record)[:-1]
    return f'{body},"crc32c":"{crc32c(body.encode("ascii")):08x}"}}'


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or ``None`` when the line differs from its checksum."""
    body, tail = line[:-_TAIL], line[-_TAIL:]
    if not body or tail != _MARK + f'{crc32c(body):08x}"}}'.encode("ascii"):
        return None
    try:
        record = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def journal_files(folder: Path) -> list[Path]:
    """The journal's files in the order in which they are read: the one of the creation first.

    Raises
    ------
    CorruptionError
        When that one is missing: the others mean nothing without it.
    StorageError
        When the folder cannot be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.name.endswith(".jsonl")]
    except (FileNotFoundError, NotADirectoryError):
        files = []
    except OSError as error:
        raise read_error(error, folder) from error
    if folder / CREATED not in files:
        raise CorruptionError(f"{folder / CREATED} is missing: the journal's first file.")
    return sorted(files, key=lambda path: (path.name != CREATED, path.name))


def read_records(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the records of one journal file in order; a torn last line is left out.

    Raises
    ------
    CorruptionError
        When a line that is not the last differs from its checksum.
    StorageError
        When the file cannot be read.
    """
    offset = 0
    torn: int | None = None
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if torn is not None:
                    raise CorruptionError(
                        f"{path}, line {torn}: differs from its checksum, and lines follow it."
                    )
                record = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
                if record is None:
                    torn = number
                else:
                    yield Place(path, offset, len(raw) - 1), record
                offset += len(raw)
    except OSError as error:
        raise read_error(error, path) from error


def read_record(place: Place) -> dict[str, Any]:
    """Read one record again.

    Raises
    ------
    CorruptionError
        When the line has changed since it was found.
    StorageError
        When the file cannot be read.
    """
    try:
        with place.path.open("rb") as stream:
            stream.seek(place.offset)
            record = decode_line(stream.read(place.length))
    except FileNotFoundError:
        record = None
    except OSError as error:
        raise read_error(error, place.path) from error
    if record is None:
        raise CorruptionError(f"{place.path}: the record at byte {place.offset} differs from its checksum.")
    return record


def mend(path: Path) -> bool:
    """Cut off a torn last line; the file's writer must be held. Returns whether there was one."""
    if not path.exists():
        return False
    end = 0
    for place, _ in read_records(path):
        end = place.offset + place.length + 1
    if end == path.stat().st_size:
        return False
    cut_file(path, end)
    return True


class JournalWriter:
    """Appends records to one journal file, each durable when :meth:`append` returns.

    Parameters
    ----------
    path : Path
        The file; made by the first append.
    sequence : int
        Number of the next record. Of two records about the same thing the one with the higher number holds,
        in whatever files they stand.
    """

    def __init__(self, path: Path, sequence: int) -> None:
        self._path = path
        self._sequence = sequence

    def append(self, record: Mapping[str, Any]) -> tuple[Place, dict[str, Any]]:
        """Append one record, which gets the next number; returns its place and the record as written.

        Raises
        ------
        StorageError
            When the disk refuses; the journal is then as before.
        """
        numbered = {**record, "seq": self._sequence}
        line = encode_line(numbered)
        offset = append_line(self._path, line)
        self._sequence += 1
        return Place(self._path, offset, len(line)), numbered
