"""Turns embeddings and the record that holds into the rows of the record that a shard will have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from embedcache.files import crc32c
from embedcache.store.journal.packing import pack
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.scales import row_crc
from embedcache.store.shards.shard import Stored, extremes, payload


@dataclass(frozen=True)
class TileRow:
    """What a shard's record says of one committed tile; ``scale_crc`` of an int8 store only."""

    crc: int
    minimum: np.float16
    maximum: np.float16
    input_digest: bytes
    scale_crc: int | None = None

    @property
    def key(self) -> tuple[bytes, int]:
        """What tiles that share a chunk have in common."""
        return self.input_digest, self.crc


def measure(stored: Stored, input_digest: bytes) -> TileRow:
    """The row of an embedding that is to be stored."""
    scale_crc = row_crc(stored.scales) if isinstance(stored, Quantised) else None
    return TileRow(crc32c(payload(stored)), *extremes(stored), input_digest, scale_crc)


def empty(shard: int) -> ShardRecord:
    """The record of a shard of which nothing is known."""
    return ShardRecord(
        shard=shard,
        slots=np.zeros(0, np.int64),
        crc=np.zeros(0, np.uint32),
        minimum=np.zeros(0, np.float16),
        maximum=np.zeros(0, np.float16),
        inputs="",
    )


def rows_of(record: ShardRecord) -> dict[int, TileRow]:
    """The rows of a record, by slot."""
    scales = [None] * len(record.slots) if record.scale_crcs is None else record.scale_crcs.tolist()
    return {
        int(slot): TileRow(
            int(record.crc[at]),
            record.minimum[at],
            record.maximum[at],
            bytes.fromhex(record.digest_of(at)),
            scales[at],
        )
        for at, slot in enumerate(record.slots)
    }


def with_rows(record: ShardRecord, rows: Mapping[int, TileRow]) -> ShardRecord:
    """The record with these rows in place of its own, in order of slot."""
    order = sorted(rows)
    scales = [rows[slot].scale_crc for slot in order]
    return replace(
        record,
        slots=np.array(order, dtype=np.int64),
        crc=np.array([rows[slot].crc for slot in order], dtype=np.uint32),
        minimum=np.array([rows[slot].minimum for slot in order], dtype=np.float16),
        maximum=np.array([rows[slot].maximum for slot in order], dtype=np.float16),
        inputs=pack(b"".join(rows[slot].input_digest for slot in order)),
        scale_crcs=np.array(scales, dtype=np.uint32) if scales and None not in scales else None,
        stale=None,
    )


def with_reasons(
    record: ShardRecord, old: ShardRecord, base: int, skipped: Mapping[int, str], failed: Mapping[int, str]
) -> ShardRecord:
    """The record with what is said now in place of what was said before; committed tiles need no reason."""
    done = set(record.slots.tolist())
    now_skipped = {tile - base: reason for tile, reason in skipped.items()}
    now_failed = {tile - base: reason for tile, reason in failed.items()}
    said = done | set(now_skipped) | set(now_failed)
    keep_skipped = {slot: reason for slot, reason in old.skipped.items() if slot not in said}
    keep_failed = {slot: reason for slot, reason in old.failed.items() if slot not in said}
    return replace(
        record,
        skipped={s: r for s, r in (keep_skipped | now_skipped).items() if s not in done},
        failed={s: r for s, r in (keep_failed | now_failed).items() if s not in done},
    )
