"""Turns a journal folder into a ``StoreState``, in order of the records' numbers, whatever writers do meanwhile.

Writers only append, so a reader sees a prefix of each file. A compaction replaces ``created.jsonl`` first and
removes the files that it stands for afterwards; a reader that finds ``created.jsonl`` replaced when it has read
everything starts again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedcache.errors import CorruptionError
from embedcache.store import layout
from embedcache.store.journal.file import JournalFile, Place, append_record, journal_files
from embedcache.store.journal.lines import CREATED, MAIN, hint_for
from embedcache.store.journal.state import StoreState

TRIES = 20
"""How often a journal that is compacted while it is read is read again."""

Numbered = tuple[int, Place, dict[str, Any]]


def read_state(root: Path, shard_tiles: int) -> StoreState:
    """Replay all files of a store's journal.

    Raises
    ------
    CorruptionError
        When a record is corrupt or contradicts the others.
    MismatchError
        When a record is of a kind that a newer version wrote.
    StorageError
        When a file is there but cannot be read.
    """
    for _ in range(TRIES):
        created = _open_created(root)
        try:
            state = _read_once(root, shard_tiles, created)
        except FileNotFoundError:  # listed, and compacted away before it was opened
            continue
        except CorruptionError:
            if created.is_current():
                raise
            continue
        if created.is_current():
            return state
    raise CorruptionError(
        f"{root / layout.JOURNAL} was another journal each of the {TRIES} times it was read."
    )


def _open_created(root: Path) -> JournalFile:
    path = root / layout.JOURNAL / CREATED
    try:
        return JournalFile(root, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptionError(f"{path} is missing: the journal's first file.", hint=hint_for(root)) from error


def _read_once(root: Path, shard_tiles: int, created: JournalFile) -> StoreState:
    state = StoreState(root, shard_tiles)
    state.files[CREATED] = created
    for place, record in created.records():
        state.apply(place, record)
    if not state.sequence and not state.n_tiles and state.attributes is None and created.end == 0:
        raise CorruptionError(f"{created.path} is empty: the journal's first file.", hint=hint_for(root))
    if created.end != created.path.lstat().st_size:  # only ever replaced as a whole: no writer tore it
        raise CorruptionError(f"{created.path} is cut short: the journal's first file.", hint=hint_for(root))
    catch_up(state)
    return state


def catch_up(state: StoreState) -> None:
    """Take in what was appended to the journal since ``state`` was read.

    No compaction may come in between: the caller holds shards of the store, or has just read ``created.jsonl``.
    Files that are open are opened anew: another host may have appended a moment ago.

    Raises
    ------
    FileNotFoundError
        When a file has been compacted away all the same.
    CorruptionError, MismatchError, StorageError
        As of :func:`read_state`.
    """
    compacted = -1 if state.snapshot is None else state.snapshot.sequence
    # MAIN last: what stands in a part's file may refer to tiles and numerics that were journalled there before
    paths = sorted(journal_files(state.root / layout.JOURNAL), key=lambda path: path.name == MAIN)
    for path in paths:
        if path.name in state.files:
            state.files[path.name].reopen()
        else:
            state.files[path.name] = JournalFile(state.root, path)
    fresh = [_numbered(state.files[path.name], state.files[path.name].size) for path in paths]
    for sequence, place, record in heapq.merge(*fresh, key=lambda entry: entry[0]):
        if sequence > compacted:
            state.apply(place, record)


def append(state: StoreState, name: str, record: Mapping[str, Any]) -> None:
    """Append a record to a file of the journal, durable on return, and take it into ``state``.

    Nobody else may be appending to that file: the caller holds the mutex, or the shards that it is of.

    Raises
    ------
    StorageError
        When the disk refuses (the journal is then as before), or the file was written by somebody else.
    """
    path = state.root / layout.JOURNAL / name
    file = state.files.get(name)
    if (
        file is not None and file.size != file.end
    ):  # an append that failed may have left its line all the same
        catch_up(state)
    numbered = {**record, "seq": state.sequence + 1}
    _, length = append_record(state.root, path, numbered, at=0 if file is None else file.end)
    if file is None:
        file = state.files[name] = JournalFile(state.root, path)
    state.apply(file.advance(length), numbered)


def _numbered(file: JournalFile, bound: int) -> Iterator[Numbered]:
    before = 0
    for place, record in file.records(bound):
        sequence = record.get("seq")
        if not isinstance(sequence, int) or sequence < before:
            raise CorruptionError(
                f"{file.path}: the record at byte {place.offset} is not numbered as one of ours.",
                hint=hint_for(file.root),
            )
        before = sequence
        yield sequence, place, record
