"""Turns the embeddings of one shard into a durable file and its journal record.

The order is: shard and scales under temporary names, fsync; an intent with the new digests, where the shard
has a file already; rename of the scales, then of the shard, fsync of the folders; the shard's record. So after a
crash it is known which of the two the file is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcache.errors import CorruptionError, EmbedcacheError, StorageError
from embedcache.files import partial_name, publish_file, remove_file, require_no_links, stage_file, sync_names
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import layout
from embedcache.store.journal.record import DIGEST_BYTES, ShardRecord
from embedcache.store.shards.body import ShardBody
from embedcache.store.shards.kept import KeptTiles
from embedcache.store.shards.quantise import NO_VALUE, Quantised
from embedcache.store.shards.rows import empty, rows_of, with_reasons, with_rows
from embedcache.store.shards.scales import CHANNELS, scales_bytes
from embedcache.store.shards.shard import FLOAT16, INT8, Form, ShardFile, Stored

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

Embeddings = Mapping[int, Stored]
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
    new = {
        tile - base: (stored, bytes.fromhex(given.input_digests[tile]))
        for tile, stored in sorted(given.embeddings.items())
    }
    made_under = numerics if new else old.numerics  # a reason alone makes no embedding another one
    known = replace(old, numerics=made_under, writer=writer, seconds=seconds)

    def finished(record: ShardRecord) -> ShardRecord:
        return with_reasons(record, old, base, given.skipped, given.failed)

    if not new and old.stale is None:
        append(finished(known).to_dict(store.shard_tiles))
        return 0
    kept = {slot: row for slot, row in rows_of(old).items() if slot not in new}
    if not new and not kept:
        _empty_shard(store, finished(replace(with_rows(known, {}), digest="", size=0)), append)
        return 0
    body = ShardBody(shard, store.form, store.shard_tiles, new, kept, _kept_tiles(store, old))
    return _replace_files(store, body, known, finished, append)


def _empty_shard(store: EmbeddingStore, record: ShardRecord, append: Append) -> None:
    """Remove the files of a shard whose last embeddings a changed source took back: no Zarr reader may see them.

    After the record: a kill in between leaves a file that no record speaks of, which counts for nothing.
    """
    append(record.to_dict(store.shard_tiles))
    for path in (layout.shard_path(store.path, record.shard), layout.scales_path(store.path, record.shard)):
        require_no_links(store.path, path.parent)
        remove_file(path)


def _replace_files(
    store: EmbeddingStore,
    body: ShardBody,
    known: ShardRecord,
    finished: Callable[[ShardRecord], ShardRecord],
    append: Append,
) -> int:
    """Give a shard the files of this body; ``known`` is its record still with the rows of the files it has.

    Where there are files they are announced, even when no tile of theirs counts any longer: a reader that opened
    the store before the source changed still looks for its tiles in them. Returns the bytes of the shard file.
    """
    with _staging(store, body.shard) as staged:
        size = _stage_body(store, staged.shard, body)
        record = finished(replace(with_rows(known, body.rows), digest=body.digest, size=size))
        if body.scales:
            stage_file(staged.scales, [scales_bytes(body.scales, store.shard_tiles)])
        if known.size > 0:
            append(record.to_dict(store.shard_tiles, kind="intent"))
        if body.scales:
            publish_file(staged.scales, layout.scales_path(store.path, body.shard))
        publish_file(staged.shard, layout.shard_path(store.path, body.shard))
    append(record.to_dict(store.shard_tiles))
    return size


def settle_shard(store: EmbeddingStore, shard: int, append: Append) -> bool:
    """Decide what a replacement that was announced and never recorded became, by the file that is there.

    When it is the older file, tiles that were being replaced may have lost their scales to it; they are left out.
    Returns whether it could be decided: a file that is neither is damaged, and what it holds still reads.
    """
    intent, old = store.state.intents[shard], store.state.shard_record(shard)
    for path in (layout.shard_path(store.path, shard), layout.scales_path(store.path, shard)):
        require_no_links(store.path, path.parent)
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
    source = _kept_tiles(store, old)
    torn = [slot for slot, row in rows_of(old).items() if not source.has_scales(slot, row)]
    append((old.without(torn) if torn else old).to_dict(store.shard_tiles))
    return True


def _kept_tiles(store: EmbeddingStore, old: ShardRecord) -> KeptTiles:
    intent = store.state.intents.get(old.shard)
    records = [old] if intent is None else [old, intent]
    return KeptTiles(store.path, store.form, store.shard_tiles, records)


@dataclass(frozen=True)
class _Staged:
    """Names under which a shard's new files are gathered."""

    shard: Path
    scales: Path


@contextmanager
def _staging(store: EmbeddingStore, shard: int) -> Iterator[_Staged]:
    """The names of the new files; on failure what was gathered is removed, as the disk may be full."""
    for path in (layout.shard_path(store.path, shard), layout.scales_path(store.path, shard)):
        require_no_links(store.path, path.parent)
    staged = _Staged(
        partial_name(store.path / layout.EMBEDDINGS / str(shard)),
        partial_name(store.path / layout.SCALES / str(shard)),
    )
    try:
        yield staged
    except BaseException:
        for partial in (staged.shard, staged.scales):
            with suppress(StorageError):
                remove_file(partial)
        raise


def _stage_body(store: EmbeddingStore, partial: Path, body: ShardBody) -> int:
    try:
        return stage_file(partial, body.pieces())
    except CorruptionError as error:
        raise CorruptionError(
            f"{store.path}: shard {body.shard} cannot be extended: {error.message}.",
            hint=f"`embedcache repair {store.path}` encodes anew what is broken.",
        ) from error


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
    for tile, stored in given.embeddings.items():
        _check_form(tile, stored, store.form)
        if len(given.input_digests.get(tile, "")) != 2 * DIGEST_BYTES:
            raise EmbedcacheError(f"tile {tile}: no SHA-256 of its input pixels")
    return base


def _check_form(tile: int, stored: Stored, form: Form) -> None:
    if isinstance(stored, Quantised):
        found = f"{stored.values.shape}, {stored.values.dtype}, scales {stored.scales.shape}"
        fits = form == INT8 and stored.values.dtype == np.int8 and stored.scales.dtype == np.float32
        fits = fits and stored.values.shape == EMBEDDING_SHAPE and stored.scales.shape == (CHANNELS,)
        fits = fits and stored.values.min() > NO_VALUE and not (stored.scales < 0).any()
    else:
        found = f"{stored.shape}, {stored.dtype}"
        fits = form == FLOAT16 and stored.shape == EMBEDDING_SHAPE and stored.dtype == np.float16
    if not fits:
        raise EmbedcacheError(f"tile {tile}: no embedding as this store of {form.dtype} keeps it ({found})")
