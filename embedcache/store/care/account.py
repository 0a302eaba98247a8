"""Turns the verdicts on shards, and what else was found, into the account of a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from embedcache.errors import CorruptionError, MismatchError
from embedcache.store import layout
from embedcache.store.care.gc import partial_files
from embedcache.store.care.unclaimed import kept_copies, unrecorded_shards
from embedcache.store.care.verification import Verification
from embedcache.store.care.verify_files import Problem
from embedcache.store.care.verify_shard import ShardVerdict
from embedcache.store.store import EmbeddingStore


def account(
    store: EmbeddingStore,
    verdicts: list[ShardVerdict],
    problems: list[Problem],
    unfinished: list[str],
    total: int,
    seed: int,
    begin: float,
) -> Verification:
    """What was looked at and found, as one value; ``total`` is the number of shards, ``begin`` when it began."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.record.shard)
    recorded = {
        verdict.record.shard: verdict.record.shard * store.shard_tiles + verdict.record.slots
        for verdict in ordered
    }
    count = sum(map(len, recorded.values()))
    missing = sum(len(verdict.record.slots) for verdict in verdicts if not verdict.there)
    corrupt = sum(len(verdict.broken) for verdict in verdicts if verdict.there)
    for verdict in ordered:
        problems += _problems(store, verdict, verdict.record.shard * store.shard_tiles)
    return Verification(
        store.path,
        ok=count - corrupt - missing,
        corrupt=corrupt,
        missing=missing,
        shards_checked=len(verdicts),
        shards_total=total,
        bytes=sum(verdict.size for verdict in verdicts),
        seconds=time.perf_counter() - begin,
        seed=seed,
        problems=tuple(problems),
        litter=(*unfinished, *litter(store.path)),
        unclaimed=unclaimed(store.path, store),
        broken={verdict.record.shard: verdict for verdict in verdicts if not verdict.intact},
        verified=np.concatenate([np.zeros(0, np.int64), *recorded.values()]),
        opened=store,
        wanted=int(store.wanted.sum()),
        not_encoded=int(store.missing.sum()),
    )


def _problems(store: EmbeddingStore, verdict: ShardVerdict, base: int) -> Iterator[Problem]:
    """A shard's damage: one problem for the file, or one for each reason that tiles are broken for."""
    where = str(layout.shard_path(store.path, verdict.record.shard))
    every = tuple((base + verdict.record.slots).tolist())
    if not verdict.there:
        yield Problem("missing file", where, every, "the shard file is missing")
    for fault in verdict.faults:
        yield Problem("shard file", where, every, fault)
    for reason, tiles in _by_reason(verdict.wrong, base):
        yield Problem("embedding", where, tiles, reason)
    scales = str(layout.scales_path(store.path, verdict.record.shard))
    for reason, tiles in _by_reason(verdict.scales, base):
        yield Problem("scales", scales, tiles, reason)


def _by_reason(slots: Mapping[int, str], base: int) -> list[tuple[str, tuple[int, ...]]]:
    grouped: dict[str, list[int]] = {}
    for slot, reason in sorted(slots.items()):
        grouped.setdefault(reason, []).append(base + slot)
    return [(reason, tuple(tiles)) for reason, tiles in grouped.items()]


def litter(root: Path) -> tuple[str, ...]:
    """What the next writer or ``gc`` removes, in words."""
    return tuple(f"{item.path}: {item.what}; {item.why}" for item in partial_files(root))


def unclaimed(root: Path, store: EmbeddingStore | None = None) -> tuple[str, ...]:
    """What nobody claims, in words; of shards, where the store opens."""
    found = [*kept_copies(root)]
    if store is not None:
        with suppress(
            CorruptionError, MismatchError
        ):  # of a journal damaged meanwhile; the next look says so
            found += unrecorded_shards(store)
    return tuple(map(str, found))
