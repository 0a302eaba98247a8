"""Turns the embeddings of one shard into a durable file and its journal record.

The order is: shard under a temporary name, fsync; an intent with the new digests, where the shard already holds
committed tiles; rename, fsync of the folder; the shard's record. So after a crash it is known which of the two
the file is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError
from embedcache.files import Buffer, partial_name, publish_file, stage_file
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import layout
from embedcache.store.compose import empty, merge, with_reasons
from embedcache.store.record import DIGEST_BYTES, ShardRecord
from embedcache.store.shard import CRC_BYTES, ShardFile, embedding_bytes, encode_index

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

Embeddings = Mapping[int, npt.NDArray[np.float16]]
Append = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class GivenTiles:
    """What is now known of tiles of one shard; all keys are tile numbers."""

    embeddings: Embeddings
    input_digests: Mapping[int, str]
    skipped: Mapping[int, str]
    failed: Mapping[int, str]


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
    base = _check_tiles(store, shard, given)
    old = store.state.shard_record(shard) or empty(shard)
    new = {tile - base: array for tile, array in sorted(given.embeddings.items())}
    digests = {tile - base: bytes.fromhex(given.input_digests[tile]) for tile in given.embeddings}
    record = replace(_merged(store, old, new, digests), numerics=numerics, writer=writer, seconds=seconds)
    record = with_reasons(record, old, base, given.skipped, given.failed)
    written = 0
    if new:
        record = _write_shard(store, old, record, new, append)
        written = record.size
    append(record.to_dict(store.shard_tiles))
    return written


def _merged(
    store: EmbeddingStore, old: ShardRecord, new: Embeddings, digests: Mapping[int, bytes]
) -> ShardRecord:
    record = merge(old, new, digests)
    for slot, low, high in zip(record.slots.tolist(), record.minimum, record.maximum, strict=True):
        if not (np.isfinite(low) and np.isfinite(high)):
            tile = record.shard * store.shard_tiles + slot
            raise EmbedcacheError(f"tile {tile}: an embedding that is not finite was to be stored")
    return record


def _write_shard(
    store: EmbeddingStore, old: ShardRecord, record: ShardRecord, new: Embeddings, append: Append
) -> ShardRecord:
    final = layout.shard_path(store.path, record.shard)
    partial = partial_name(store.path / layout.EMBEDDINGS / str(record.shard))
    digest = hashlib.sha256()
    size = stage_file(partial, _hashed(_pieces(store, record, new), digest))
    record = replace(record, digest=f"sha256:{digest.hexdigest()}", size=size)
    if len(old.slots):
        append(record.to_dict(store.shard_tiles, kind="intent"))
    publish_file(partial, final)
    return record


def _pieces(store: EmbeddingStore, record: ShardRecord, new: Embeddings) -> Iterator[Buffer]:
    """The shard's bytes in order: kept chunks from the file there, new ones from memory, the index."""
    kept = [slot for slot in record.slots.tolist() if slot not in new]
    try:
        source = ShardFile(layout.shard_path(store.path, record.shard), store.shard_tiles) if kept else None
        for slot, crc in zip(record.slots.tolist(), record.crc.tolist(), strict=True):
            array = new.get(slot)
            if array is None and source is not None:
                array, found = source.read(slot)
                if found != crc:
                    raise CorruptionError(f"slot {slot} of {source.path} differs from its record")
            assert array is not None
            yield embedding_bytes(array)
            yield crc.to_bytes(CRC_BYTES, "little")
    except CorruptionError as error:
        raise CorruptionError(
            f"{store.path}: shard {record.shard} cannot be extended: {error.message}.",
            hint="Restore that file from a copy, or encode again into another --store.",
        ) from error
    yield encode_index(record.slots, store.shard_tiles)


def _check_tiles(store: EmbeddingStore, shard: int, given: GivenTiles) -> int:
    """First tile number of the shard, once all that was given is known to be fit to be stored."""
    base = shard * store.shard_tiles
    numbers = [*given.embeddings, *given.skipped, *given.failed]
    if len(set(numbers)) != len(numbers):
        raise EmbedcacheError(f"shard {shard}: a tile is given as two of encoded, skipped and failed")
    for tile in numbers:
        if not (base <= tile < base + store.shard_tiles and 0 <= tile < len(store)):
            raise EmbedcacheError(f"tile {tile} does not belong to shard {shard} of {store.path}")
        if store.table[tile, 0] < 0:
            raise EmbedcacheError(f"number {tile} of {store.path} has no tile")
    for tile, array in given.embeddings.items():
        if array.shape != EMBEDDING_SHAPE or array.dtype != np.float16:
            raise EmbedcacheError(f"tile {tile}: an embedding of shape {array.shape}, {array.dtype}")
        if len(given.input_digests.get(tile, "")) != 2 * DIGEST_BYTES:
            raise EmbedcacheError(f"tile {tile}: no SHA-256 of its input pixels")
    return base


def _hashed(pieces: Iterator[Buffer], digest: hashlib._Hash) -> Iterator[Buffer]:
    for piece in pieces:
        digest.update(piece)
        yield piece
