"""Turns journal files into records, and appends records to them.

A last line without its line break is torn (its writer was killed before it was acknowledged): it is left out.
Any other line that differs from its checksum is corruption, wherever it stands.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import CorruptionError
from embedcache.files import append_line, open_inside, read_error, require_no_links
from embedcache.store.journal.lines import CREATED, LINE_LIMIT, SUFFIX, decode_line, encode_line, hint_for

_PIECE = 1 << 20
_LOOKS = 4
_PAUSE_SECONDS = 0.01


class JournalFile:
    """A journal file opened for reading; it stays readable when a compaction removes its name.

    Parameters
    ----------
    root : Path
        The store.
    path : Path
        The file.

    Raises
    ------
    FileNotFoundError
        When there is none.
    CorruptionError
        When it is a link or no regular file.
    StorageError
        When it cannot be read.

    Attributes
    ----------
    end : int
        Offset behind the last whole line that :meth:`records` has given.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self.root = root
        self.path = path
        self.end = 0
        self._lines = 0
        self._descriptor = -1
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            return open_inside(self.root, self.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise read_error(error, self.path) from error

    def reopen(self) -> None:
        """Open the file anew, so that its size is that of now.

        What a network file system says of a file that has been open for long may be seconds old.

        Raises
        ------
        FileNotFoundError
            When it is gone, or another one has its name.
        CorruptionError, StorageError
            As when it was opened first.
        """
        fresh = self._open()
        try:
            if not self._is_same(fresh):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
            os.dup2(fresh, self._descriptor, inheritable=False)  # in one step: other threads may be reading
        finally:
            os.close(fresh)

    def _is_same(self, descriptor: int) -> bool:
        """Whether an open file is this one; no other can have its number while it is open."""
        try:
            ours, other = os.fstat(self._descriptor), os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed by another host
                return False
            raise read_error(error, self.path) from error
        return (ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino)

    def records(self, bound: int | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield the records behind :attr:`end`, in order; a torn last line is left out.

        Parameters
        ----------
        bound : int, optional
            Where the file ended when it was last looked at; what has been appended since is left for later.

        Raises
        ------
        CorruptionError
            When a line differs from its checksum, or is longer than any of ours.
        StorageError
            When the file cannot be read.
        """
        looks, rest = 0, b""
        while piece := self._pread(self._wanted(self.end + len(rest), bound), self.end + len(rest)):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                record = decode_line(line)
                if record is None:
                    break
                looks = 0
                yield self.advance(len(line)), record
            else:
                if len(rest) > LINE_LIMIT:
                    raise self._broken("is longer than any line of ours")
                continue
            # a writer that cuts off a torn line and appends its own while we read shows us one glued to the other
            looks, rest = looks + 1, b""
            if looks == _LOOKS:
                raise self._broken("differs from its checksum")
            time.sleep(_PAUSE_SECONDS)

    @staticmethod
    def _wanted(offset: int, bound: int | None) -> int:
        return _PIECE if bound is None else max(0, min(_PIECE, bound - offset))

    def _broken(self, what: str) -> CorruptionError:
        return CorruptionError(
            f"{self.path}, line {self._lines + 1} (byte {self.end}) {what}.", hint=hint_for(self.root)
        )

    def advance(self, length: int) -> Place:
        """The place of a line of ``length`` bytes that was appended at :attr:`end`, which moves behind it."""
        place = Place(self, self.end, length)
        self.end += length + 1
        self._lines += 1
        return place

    def line(self, place: Place) -> bytes:
        """The bytes of a line found before."""
        return self._pread(place.length, place.offset)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise read_error(error, self.path) from error

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self._descriptor).st_size

    def is_current(self) -> bool:
        """Whether the name still leads to this file, asked by opening it (see :meth:`reopen`)."""
        try:
            self.reopen()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: file, offset of its line, length of the line without the line break."""

    file: JournalFile
    offset: int
    length: int

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.file.path


def journal_files(folder: Path) -> list[Path]:
    """The journal's files but the one of the creation, by name.

    Raises
    ------
    StorageError
        When the folder cannot be read.
    """
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise read_error(error, folder) from error
    return [folder / name for name in sorted(names) if name.endswith(SUFFIX) and name != CREATED]


def read_record(place: Place) -> dict[str, Any]:
    """Read one record again.

    Raises
    ------
    CorruptionError
        When the line has changed since it was found.
    StorageError
        When the file cannot be read.
    """
    record = decode_line(place.file.line(place))
    if record is None:
        raise CorruptionError(
            f"{place.path}: the record at byte {place.offset} differs from its checksum.",
            hint=hint_for(place.file.root),
        )
    return record


def append_record(
    root: Path, path: Path, record: Mapping[str, Any], *, at: int | None = None
) -> tuple[int, int]:
    """Append one record, durable on return; gives the offset and length of its line.

    ``at`` is where the file must end, if that is known.

    Raises
    ------
    StorageError
        When the disk refuses, or the file ends elsewhere; the journal is then as before.
    CorruptionError
        When the file or its folder is a link.
    InputError
        When the record is too long.
    """
    line = encode_line(record)
    require_no_links(root, path)
    return append_line(path, line, at=at), len(line)
