"""Turns the wish to write into a ``StoreWriter``: locks, links refused, litter removed, what was left is settled.

Writers of other shards go on beside it. What concerns the whole store happens under the mutex, which is held for
moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.errors import StorageError
from embedcache.files import (
    CLAIMS,
    LITTER_NAME,
    claims_under_mutex,
    cut_file,
    range_lock,
    remove_file,
    remove_litter,
    require_no_links,
    sync_file,
    sync_names,
)
from embedcache.store import layout
from embedcache.store.journal.compaction import compact, is_due
from embedcache.store.journal.lines import SUFFIX
from embedcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore


@contextmanager
def writing(store: EmbeddingStore, shards: range | None) -> Iterator[StoreWriter]:
    """Hold shards of a store for writing, for the block; ``None``: all there are and will be.

    Raises
    ------
    LockedError
        When a living writer holds one of them.
    CorruptionError
        When a folder of the store is a link.
    StorageError
        When the store cannot be written.
    """
    for names in (
        (layout.JOURNAL, CLAIMS),
        (layout.EMBEDDINGS, "c"),
        (layout.TILES, "c"),
        (layout.SCALES, "c"),
    ):
        require_no_links(store.path, store.path.joinpath(*names))
    with range_lock(store.path / layout.JOURNAL, shards, guarded=store.path) as held:
        writer = StoreWriter(store, shards, held.require)
        with writer.store_wide():
            make_durable(store.path)
            _clean(store.path, shards)
            _mend(store, writer)
            writer.settle()
            compact_if_due(store)
        yield writer
        with writer.store_wide():
            compact_if_due(store)


def make_durable(root: Path) -> None:
    """Make durable what the journal says, and what it says it of, before anything new is built on it.

    A process that was killed, or is at work, may have written lines and given files their names without having
    fsynced them; who reads them then would take for safe what a power cut takes away.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    for path in sorted((root / layout.JOURNAL).glob(f"*{SUFFIX}")):
        require_no_links(root, path)
        sync_file(path)
    tables = root / layout.TILES / "c"
    for folder in (
        *(root / name for name in (layout.JOURNAL, layout.EMBEDDINGS, layout.SCALES, layout.TILES)),
        *(path for path in (tables, *sorted(tables.glob("*")))),
        root,
    ):
        require_no_links(root, folder)
        sync_names(folder)


def _clean(root: Path, shards: range | None) -> None:
    """Remove what a killed writer left under temporary names; a part leaves the files of other parts alone."""
    for name in ("", layout.JOURNAL):  # written under the mutex only, which is ours
        remove_litter(root / name, deep=False)
    remove_litter(root / layout.TILES)
    for name in (layout.EMBEDDINGS, layout.SCALES):
        for path in sorted((root / name).glob("*")):
            if not LITTER_NAME.fullmatch(path.name):
                continue
            shard = path.name.split(".")[0]
            if shards is None or not shard.isdecimal() or int(shard) in shards:
                remove_file(path)


def _mend(store: EmbeddingStore, writer: StoreWriter) -> None:
    """Cut off torn last lines: a part those of its own file, whoever holds the whole store all of them."""
    for name, file in store.state.files.items():
        if writer.may_append(name) and file.size != file.end:
            cut_file(file.path, file.end)


def compact_if_due(store: EmbeddingStore) -> None:
    """Compact a journal that has grown long, if nobody else is writing; the mutex must be held.

    A disk that refuses is no reason to fail: the journal says the same without it, and the next writer tries.
    """
    folder = store.path / layout.JOURNAL
    if is_due(store.state) and len(claims_under_mutex(folder)) == 1:
        try:
            compact(store.state, store.attributes)
        except StorageError:
            pass
        finally:
            store.refresh()  # files that we know may be gone
