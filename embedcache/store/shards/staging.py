"""Turns the embeddings of one shard into new files that nobody looks at yet, and the record to speak of them.

Staging needs no lock and changes nothing that is committed, so a worker on another machine may do it; what makes
it part of the store is ``publish_shard`` in ``commit.py``, done by the one writer that holds the shard.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.errors import CorruptionError, StorageError, command
from embedcache.files import PARTIAL_SUFFIX, digest_json, remove_file, require_no_links, stage_file
from embedcache.store import layout
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.body import ShardBody
from embedcache.store.shards.given import GivenTiles, check_tiles
from embedcache.store.shards.kept import KeptTiles
from embedcache.store.shards.rows import empty, rows_of, with_reasons, with_rows
from embedcache.store.shards.scales import scales_bytes

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore


@dataclass(frozen=True)
class StagedShard:
    """A shard as it will be once it is published.

    Parameters
    ----------
    record : ShardRecord
        What will be journalled; its number of numerics is the older record's until it is published.
    extends : str
        Digest of the record that the shard had: published on top of another it would lose tiles.
    tag : int
        Tells the names of the new files from those of other writers.
    has_file, has_scales : bool
        Which new files there are.
    encodes : bool
        Whether there are embeddings that the older record has not.
    empties : bool
        Whether the shard's files go, as none of their tiles counts any longer.
    """

    record: ShardRecord
    extends: str
    tag: int
    has_file: bool = False
    has_scales: bool = False
    encodes: bool = False
    empties: bool = False

    @property
    def shard(self) -> int:
        """Number of the shard."""
        return self.record.shard

    @property
    def bytes_written(self) -> int:
        """Bytes of the new shard file; 0 when it does not change."""
        return self.record.size if self.has_file else 0

    def files(self, root: Path) -> list[tuple[Path, Path]]:
        """The staged files and their final names, in the order in which they are published."""
        names = staged_names(root, self.shard, self.tag)
        scales = [(names.scales, layout.scales_path(root, self.shard))] if self.has_scales else []
        return [*scales, (names.shard, layout.shard_path(root, self.shard))] if self.has_file else scales

    def to_dict(self, shard_tiles: int) -> dict[str, Any]:
        """JSON values, a few kilobytes: what a worker sends to the writer."""
        return {
            "record": self.record.to_dict(shard_tiles),
            "extends": self.extends,
            "tag": self.tag,
            "has_file": self.has_file,
            "has_scales": self.has_scales,
            "encodes": self.encodes,
            "empties": self.empties,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], shard_tiles: int) -> StagedShard:
        """What :meth:`to_dict` gave.

        Raises
        ------
        CorruptionError
            When the record's parts do not fit together.
        """
        return cls(**{**values, "record": ShardRecord.from_dict(values["record"], shard_tiles)})


@dataclass(frozen=True)
class StagedNames:
    """Names under which a shard's new files are gathered."""

    shard: Path
    scales: Path


def staged_names(root: Path, shard: int, tag: int) -> StagedNames:
    """Where a writer of this tag gathers the files of a shard; the next writer removes what is left there."""
    name = f"{shard}.{tag}{PARTIAL_SUFFIX}"
    return StagedNames(root / layout.EMBEDDINGS / name, root / layout.SCALES / name)


def remove_staged(root: Path, shard: int, tag: int) -> None:
    """Remove what was gathered, as the disk may be full; a refusal leaves it to the next writer."""
    names = staged_names(root, shard, tag)
    for partial in (names.shard, names.scales):
        with suppress(StorageError):
            remove_file(partial)


def record_mark(record: ShardRecord, shard_tiles: int) -> str:
    """Digest by which it is known whether a shard still has the record that was staged upon."""
    return digest_json(record.to_dict(shard_tiles))


def stage_shard(
    store: EmbeddingStore,
    shard: int,
    given: GivenTiles,
    *,
    writer: str,
    seconds: dict[str, float],
    tag: int | None = None,
) -> StagedShard:
    """Write and fsync the new files of a shard under temporary names; on failure nothing is left.

    Parameters
    ----------
    store : EmbeddingStore
        Its snapshot must have the shard's newest record.
    shard : int
        Number of the shard.
    given : GivenTiles
        What is to be committed.
    writer, seconds
        As the record shall have them.
    tag : int, optional
        Of the temporary names; by default this process's number.

    Raises
    ------
    EmbedcacheError, StorageError, CorruptionError
        As ``StoreWriter.commit_shard``.
    """
    base = check_tiles(store, shard, given)
    old = store.state.shard_record(shard) or empty(shard)
    tag = os.getpid() if tag is None else tag
    new = {
        tile - base: (stored, bytes.fromhex(given.input_digests[tile]))
        for tile, stored in sorted(given.embeddings.items())
    }
    known = replace(old, writer=writer, seconds=seconds)
    extends = record_mark(old, store.shard_tiles)

    def finished(record: ShardRecord) -> ShardRecord:
        return with_reasons(record, old, base, given.skipped, given.failed)

    if not new and old.stale is None:
        return StagedShard(finished(known), extends, tag)
    kept = {slot: row for slot, row in rows_of(old).items() if slot not in new}
    if not new and not kept:
        return StagedShard(
            finished(replace(with_rows(known, {}), digest="", size=0)), extends, tag, empties=True
        )
    body = ShardBody(shard, store.form, store.shard_tiles, new, kept, kept_tiles(store, old))
    with _staging(store, shard, tag) as names:
        size = _stage_body(store, names.shard, body)
        if body.scales:
            stage_file(names.scales, [scales_bytes(body.scales, store.shard_tiles)])
    record = finished(replace(with_rows(known, body.rows), digest=body.digest, size=size))
    return StagedShard(record, extends, tag, has_file=True, has_scales=bool(body.scales), encodes=bool(new))


def kept_tiles(store: EmbeddingStore, old: ShardRecord) -> KeptTiles:
    """What is committed of a shard, wherever an announced replacement has left it."""
    intent = store.state.intents.get(old.shard)
    records = [old] if intent is None else [old, intent]
    return KeptTiles(store.path, store.form, store.shard_tiles, records)


def require_own_folders(store: EmbeddingStore, shard: int) -> None:
    """Refuse folders of a shard's files that are links: ``CorruptionError``."""
    for path in (layout.shard_path(store.path, shard), layout.scales_path(store.path, shard)):
        require_no_links(store.path, path.parent)


@contextmanager
def _staging(store: EmbeddingStore, shard: int, tag: int) -> Iterator[StagedNames]:
    require_own_folders(store, shard)
    try:
        yield staged_names(store.path, shard, tag)
    except BaseException:
        remove_staged(store.path, shard, tag)
        raise


def _stage_body(store: EmbeddingStore, partial: Path, body: ShardBody) -> int:
    try:
        return stage_file(partial, body.pieces())
    except CorruptionError as error:
        raise CorruptionError(
            f"{store.path}: shard {body.shard} cannot be extended: {error.message}.",
            hint=f"`{command('repair', store.path)}` encodes anew what is broken.",
        ) from error
