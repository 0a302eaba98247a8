"""Turns the embeddings of one shard into a durable file and its journal record.

The order is: shard and scales under temporary names, fsync (``staging.py``); an intent with the new digests, where
the shard has a file already; rename of the scales, then of the shard, fsync of the folders; the shard's record. So
after a crash it is known which of the two the file is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcache.errors import CorruptionError
from embedcache.files import publish_file, remove_file, sync_names
from embedcache.store import layout
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.given import GivenTiles
from embedcache.store.shards.rows import empty, rows_of
from embedcache.store.shards.shard import ShardFile
from embedcache.store.shards.staging import (
    StagedShard,
    kept_tiles,
    record_mark,
    remove_staged,
    require_own_folders,
    stage_shard,
)

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

Append = Callable[[Mapping[str, Any]], None]


def commit_shard(
    store: EmbeddingStore,
    shard: int,
    given: GivenTiles,
    append: Append,
    *,
    numerics: int | None,
    writer: str,
    seconds: dict[str, float],
) -> int:
    """Make tiles of one shard durable and append the shard's record; returns the bytes of the shard file.

    ``append`` makes one journal record durable. Errors are those of ``StoreWriter.commit_shard``.
    """
    staged = stage_shard(store, shard, given, writer=writer, seconds=seconds)
    publish_shard(store, staged, append, numerics=numerics)
    return staged.bytes_written


def publish_shard(
    store: EmbeddingStore, staged: StagedShard, append: Append, *, numerics: int | None
) -> bool:
    """Give staged files their names and append the shard's record; what cannot be published is removed.

    Where there are files they are announced, even when no tile of theirs counts any longer: a reader that opened
    the store before the source changed still looks for its tiles in them. Returns False, and changes nothing,
    when the shard is no longer as it was when this was staged.
    """
    old = store.state.shard_record(staged.shard) or empty(staged.shard)
    if record_mark(old, store.shard_tiles) != staged.extends:
        remove_staged(store.path, staged.shard, staged.tag)
        return False
    # a reason alone makes no embedding another one
    record = replace(staged.record, numerics=numerics) if staged.encodes else staged.record
    if staged.empties:
        _empty_shard(store, record, append)
    elif staged.has_file:
        _replace_files(store, staged, record, old, append)
    else:
        append(record.to_dict(store.shard_tiles))
    return True


def _empty_shard(store: EmbeddingStore, record: ShardRecord, append: Append) -> None:
    """Remove the files of a shard whose last embeddings a changed source took back: no Zarr reader may see them.

    After the record: a kill in between leaves a file that no record speaks of, which counts for nothing.
    """
    append(record.to_dict(store.shard_tiles))
    require_own_folders(store, record.shard)
    for path in (layout.shard_path(store.path, record.shard), layout.scales_path(store.path, record.shard)):
        remove_file(path)


def _replace_files(
    store: EmbeddingStore, staged: StagedShard, record: ShardRecord, old: ShardRecord, append: Append
) -> None:
    """Announce the new files where there are older ones, rename them, and record them."""
    try:
        require_own_folders(store, staged.shard)
        if old.size > 0:
            append(record.to_dict(store.shard_tiles, kind="intent"))
        for partial, path in staged.files(store.path):
            publish_file(partial, path)
    except BaseException:
        remove_staged(store.path, staged.shard, staged.tag)
        raise
    append(record.to_dict(store.shard_tiles))


def settle_shard(store: EmbeddingStore, shard: int, append: Append) -> bool:
    """Decide what a replacement that was announced and never recorded became, by the file that is there.

    When it is the older file, tiles that were being replaced may have lost their scales to it; they are left out.
    Returns whether it could be decided: a file that is neither is damaged, and what it holds still reads.
    """
    intent, old = store.state.intents[shard], store.state.shard_record(shard)
    require_own_folders(store, shard)
    for path in (layout.shard_path(store.path, shard), layout.scales_path(store.path, shard)):
        sync_names(path.parent)  # a killed writer may have renamed the file and come no further
    try:
        found = ShardFile(store.path, shard, store.form, store.shard_tiles).digest()
    except CorruptionError:
        return False
    if found == intent.digest:
        append(intent.to_dict(store.shard_tiles))
        return True
    if old is None or found != old.digest:
        return False
    source = kept_tiles(store, old)
    torn = [slot for slot, row in rows_of(old).items() if not source.has_scales(slot, row)]
    append((old.without(torn) if torn else old).to_dict(store.shard_tiles))
    return True
