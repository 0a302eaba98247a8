"""Turns a shard's record and what is new into the record that the shard will have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from embedcache.files import crc32c
from embedcache.store.record import ShardRecord, pack
from embedcache.store.shard import embedding_bytes, extremes


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


def merge(
    old: ShardRecord, new: Mapping[int, npt.NDArray[np.float16]], digests: Mapping[int, bytes]
) -> ShardRecord:
    """The old record with the new tiles in it, in order of slot."""
    rows = {
        slot: (crc, low, high, bytes.fromhex(old.digest_of(position)))
        for position, (slot, crc, low, high) in enumerate(
            zip(old.slots.tolist(), old.crc.tolist(), old.minimum, old.maximum, strict=True)
        )
    }
    for slot, array in new.items():
        rows[slot] = (crc32c(embedding_bytes(array)), *extremes(array), digests[slot])
    order = sorted(rows)
    return replace(
        old,
        slots=np.array(order, dtype=np.int64),
        crc=np.array([rows[slot][0] for slot in order], dtype=np.uint32),
        minimum=np.array([rows[slot][1] for slot in order], dtype=np.float16),
        maximum=np.array([rows[slot][2] for slot in order], dtype=np.float16),
        inputs=pack(b"".join(rows[slot][3] for slot in order)),
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
