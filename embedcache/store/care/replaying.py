"""Turns a damaged store, which need not open, into what its journal still says: attributes and state."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from embedcache.errors import CorruptionError, EmbedcacheError, InputError
from embedcache.store import layout
from embedcache.store.care.dropping import KnownNumerics
from embedcache.store.care.verify_files import read_journal
from embedcache.store.creation import check_attributes
from embedcache.store.journal.file import JournalFile, journal_files
from embedcache.store.journal.lines import CREATED, decode_line
from embedcache.store.journal.replay import catch_up
from embedcache.store.journal.state import StoreState

REBUILT_TILES = 1 << 24
"""Tile numbers for which a missing table is rebuilt at most; more only a table that is there makes believable."""


class _WithoutTable(StoreState):
    """A journal replayed although the table of tiles, which follows from it, may be missing."""

    def _require_rows(self, n_tiles: int) -> None:
        """Only that memory is not taken by a mere claim: the table is about to be rebuilt."""
        if n_tiles > REBUILT_TILES:
            super()._require_rows(n_tiles)


def recorded_attributes(root: Path) -> dict[str, Any]:
    """The attributes that the journal says, or those of the group where it says none (older stores)."""
    folder = root / layout.JOURNAL
    for path in [folder / CREATED, *journal_files(folder)]:
        with suppress(FileNotFoundError, NotADirectoryError):
            for line in read_journal(root, path).split(b"\n"):
                record = decode_line(line) if b'"kind":"store"' in line else None
                if record is not None:
                    check_attributes(root, record["attributes"])
                    return dict(record["attributes"])
    try:
        attributes = layout.read_json(root / layout.GROUP_FILE)["attributes"][layout.ATTRIBUTE]
        check_attributes(root, attributes)
    except (OSError, KeyError, TypeError, InputError) as error:
        raise CorruptionError(
            f"{root / layout.GROUP_FILE} is damaged, and the journal does not say what stood in it.",
            hint="Restore it from a copy.",
        ) from error
    return dict(attributes)


def replay(root: Path, shard_tiles: int) -> StoreState:
    """What the whole journal says, whether or not the table of tiles is there.

    Raises
    ------
    CorruptionError, MismatchError, StorageError
        As of opening the store.
    """
    state = replay_created(root, shard_tiles)
    catch_up(state)
    return state


def replay_created(root: Path, shard_tiles: int) -> StoreState:
    """What the journal's first file says, and the snapshot that it names."""
    state = _WithoutTable(root, shard_tiles)
    path = root / layout.JOURNAL / CREATED
    try:
        created = state.files[CREATED] = JournalFile(root, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptionError(f"{path} is missing: nothing says what the store holds.") from error
    for place, record in created.records():
        state.apply(place, record)
    return state


def known_numerics(root: Path) -> KnownNumerics:
    """What is known of the numerics without the files of single records; nothing where that is damaged too."""
    try:
        copied = layout.read_json(root / layout.GROUP_FILE)["attributes"][layout.ATTRIBUTE]["numerics"]
        found = recorded_attributes(root)
        state = replay_created(root, int(found["shard_tiles"]))
    except (EmbedcacheError, OSError, LookupError, TypeError):
        return KnownNumerics((), (), 0)
    return KnownNumerics(state.numerics, list(copied), state.sequence + 1)
