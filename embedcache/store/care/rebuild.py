"""Turns a damaged shard's record, and those of its chunks that are right, back into its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from embedcache.errors import CorruptionError
from embedcache.files import (
    Buffer,
    crc32c,
    partial_name,
    publish_file,
    remove_file,
    require_no_links,
    sha256_file,
    stage_file,
    write_file,
)
from embedcache.store import layout
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.kept import KeptTiles
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.rows import rows_of
from embedcache.store.shards.scales import scales_bytes
from embedcache.store.shards.shard import CRC_BYTES, NOT_STORED, Stored, encode_index, payload
from embedcache.store.store import EmbeddingStore


def rebuild_shard(store: EmbeddingStore, record: ShardRecord, new: Mapping[int, Stored]) -> bool:
    """Write a shard's files as the record says, from the chunks that are right and the embeddings given.

    Parameters
    ----------
    store : EmbeddingStore
        Held for writing as a whole.
    record : ShardRecord
        What the files have to be.
    new : dict of int to embedding
        By slot: what is not right in the files there.

    Returns
    -------
    bool
        Whether every byte is the one recorded; if not, nothing was changed.
    """
    held = record.stored
    final, scales = layout.shard_path(store.path, record.shard), layout.scales_path(store.path, record.shard)
    for path in (final, scales):
        require_no_links(store.path, path.parent)  # a link at the very end is replaced, not followed
        if path.is_dir() and not path.is_symlink():
            raise CorruptionError(f"{path} is a folder; move it elsewhere, then run repair again.")
    source = KeptTiles(store.path, store.form, store.shard_tiles, [record])
    partial = partial_name(store.path / layout.EMBEDDINGS / str(record.shard))
    rows = rows_of(held)
    try:
        table = None
        if held.scale_crcs is not None:
            table = scales_bytes(
                {slot: _scales(source, rows, slot, new) for slot in held.slots.tolist()}, store.shard_tiles
            )
        stage_file(partial, _pieces(store, held, source, new))
        if f"sha256:{sha256_file(partial)}" != record.digest:
            remove_file(partial)
            return False
    except CorruptionError:
        return False
    if table is not None:
        write_file(scales, table)
    publish_file(partial, final)
    return True


def _scales(source: KeptTiles, rows: Mapping[int, Any], slot: int, new: Mapping[int, Stored]) -> Any:
    given = new.get(slot)
    return given.scales if isinstance(given, Quantised) else source.scales(slot, rows[slot])


def _pieces(
    store: EmbeddingStore, held: ShardRecord, source: KeptTiles, new: Mapping[int, Stored]
) -> Iterator[Buffer]:
    """The file's bytes in order, each chunk checked against the record."""
    index, rows = held.index(store.shard_tiles, store.form), rows_of(held)
    slots = np.flatnonzero(index[:, 0] != NOT_STORED)
    _, first = np.unique(index[slots, 0], return_index=True)
    for slot in slots[first].tolist():  # np.unique gives the offsets in order
        data = payload(new[slot]) if slot in new else source.payload(slot, rows[slot])
        if crc32c(data) != rows[slot].crc:
            raise CorruptionError(f"slot {slot} was encoded again to other bits")
        yield data
        yield rows[slot].crc.to_bytes(CRC_BYTES, "little")
    yield encode_index(index)
