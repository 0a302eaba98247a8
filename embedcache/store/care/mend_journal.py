"""Turns a store's damaged journal files back into what they were; the files as they were found are kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from embedcache.errors import CorruptionError, StorageError, command
from embedcache.files import crc32c, create_file, sha256_file, sha256_hex, write_file
from embedcache.store import layout
from embedcache.store.care.dropping import drop_lines
from embedcache.store.care.journal_damage import damaged_lines, flipped_bit, mend
from embedcache.store.care.replaying import known_numerics
from embedcache.store.care.unclaimed import DAMAGED
from embedcache.store.care.verify_files import journal_damage, read_journal
from embedcache.store.journal.file import journal_files
from embedcache.store.journal.lines import CREATED, decode_line
from embedcache.store.journal.snapshot import is_snapshot

COPIES = 1000
"""Damaged copies of one file that are kept at most."""


@dataclass
class Mended:
    """What was mended, what could not be, and which lines of the journal were dropped, in words."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def mend_journal(root: Path, mended: Mended, *, drop: bool) -> None:
    """Mend every file of the journal, and say in ``mended`` what was done.

    Parameters
    ----------
    root : Path
        The store, which need not open.
    mended : Mended
        The account, which is added to.
    drop : bool
        Leave out lines that cannot be mended, where no more is lost than they said.
    """
    _mend_file(root, root / layout.JOURNAL / CREATED, mended, drop=drop)
    _mend_snapshot(root, mended)
    for path in journal_files(root / layout.JOURNAL):
        _mend_file(root, path, mended, drop=drop)


def _mend_file(root: Path, path: Path, mended: Mended, *, drop: bool) -> None:
    try:
        damage = journal_damage(root, path)
    except FileNotFoundError:
        return  # a missing first file is told by whoever replays the journal
    except CorruptionError as error:
        mended.left.append(error.message)
        return
    if not damage:
        return
    data = read_journal(root, path)
    kept = _keep(path, data)
    right = mend(data, damage)
    if drop:
        right, dropped = drop_lines(right, known_numerics(root))
        mended.dropped += [f"{path}, {line.words} (the file as it was: {kept})" for line in dropped]
    if right != data:
        write_file(path, right)
    mended.done += [
        f"{path}, line {line.number}: one flipped bit (the file as it was: {kept})"
        for line in damage
        if line.mended is not None
    ]
    mended.left += [
        f"{path}, line {line.number}: {_stays(root, kept, drop)}" for line in damaged_lines(right)
    ]


def _stays(root: Path, kept: Path, drop: bool) -> str:
    """Why a damaged line stays as it is, and the ways out."""
    way = (
        "others depend on what it said, so it cannot be dropped"
        if drop
        else f"`{command('repair', root, '--drop-lines')}` goes on without it, where that is possible"
    )
    return (
        f"more than one bit is wrong, which its checksum cannot undo. Restore the file from a copy of the store "
        f"(it is kept as {kept}), or encode into another --store; {way}"
    )


def _mend_snapshot(root: Path, mended: Mended) -> None:
    """Turn one flipped bit of the snapshot back; what else is wrong with it, replaying the journal says."""
    with suppress(FileNotFoundError, NotADirectoryError, CorruptionError, LookupError, TypeError, ValueError):
        for line in read_journal(root, root / layout.JOURNAL / CREATED).split(b"\n"):
            record = decode_line(line)
            if record is None or record.get("kind") != "snapshot" or not is_snapshot(str(record["file"])):
                continue
            path = root / layout.JOURNAL / str(record["file"])
            data = bytearray(read_journal(root, path))
            found = flipped_bit(len(data), crc32c(data) ^ int(record["file_crc32c"], 16))
            if found is not None and len(data) == record["bytes"]:
                kept = _keep(path, bytes(data))
                data[found[0]] ^= found[1]
                write_file(path, data)
                mended.done.append(f"{path}: one flipped bit (the file as it was: {kept})")


def _keep(path: Path, data: bytes) -> Path:
    """Keep a damaged file beside itself; once for each content."""
    for number in range(1, COPIES + 1):
        kept = path.with_name(path.name + DAMAGED + ("" if number == 1 else f".{number}"))
        try:
            create_file(kept, data)
            return kept
        except FileExistsError:
            with suppress(OSError):
                if sha256_file(kept) == sha256_hex(data):
                    return kept
    raise StorageError(f"{path}: there are too many damaged copies beside it.", hint="Move them elsewhere.")
