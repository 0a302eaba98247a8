"""Turns a store into an account of itself: which recorded embeddings are there, and what is not as it was written.

Read-only: no lock is taken and nothing is written, so a store that is being encoded, or that cannot be written, is
verified as well. The journal is read once; before a shard is accused, the journal is read again, as its writer may
have replaced it meanwhile. What a killed writer left (a torn last line, a file under a temporary name) is litter
and no corruption; a shard file without a record is named as what nobody claims.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, InputError, MismatchError
from embedcache.progress import Progress, Silent
from embedcache.store import layout
from embedcache.store.care.gc import partial_files
from embedcache.store.care.unclaimed import kept_copies, unrecorded_shards
from embedcache.store.care.verification import Scope, Verification
from embedcache.store.care.verify_files import Problem, check_files, check_journal
from embedcache.store.care.verify_shard import ShardVerdict, check_shard
from embedcache.store.journal.newest import NewestState
from embedcache.store.journal.record import ShardRecord
from embedcache.store.journal.state import StoreState
from embedcache.store.store import EmbeddingStore

_THREADS = 4


def verify(path: Path | str, scope: Scope | None = None, progress: Progress | None = None) -> Verification:
    """Compare a store with its own records.

    Parameters
    ----------
    path : Path or str
        The store.
    scope : Scope, optional
        How much of it; by default all.
    progress : Progress, optional
        Where to report to; silent by default.

    Returns
    -------
    Verification
        Also of a store that is too damaged to be opened.

    Raises
    ------
    InputError
        When the folder is no store.
    MismatchError
        When a newer version wrote it.
    StorageError
        When this user may not read a file of it: that is no damage.
    """
    begin = time.perf_counter()
    root, scope = Path(path).absolute(), scope or Scope()
    seed = int.from_bytes(os.urandom(4), "little") if scope.seed is None else scope.seed
    problems = check_journal(root)
    store, why = _open(root)
    if store is None:
        problems += (
            []
            if any(problem.reason in why for problem in problems)
            else [Problem("store", str(root), (), why)]
        )
        return Verification(
            root,
            seconds=time.perf_counter() - begin,
            seed=seed,
            problems=tuple(problems),
            litter=_litter(root),
            unclaimed=_unclaimed(root),
        )
    newest = NewestState(store)
    found, unfinished = check_files(store, newest)
    problems += found
    shards = np.unique(np.flatnonzero(store.committed) // store.shard_tiles)
    deadline = None if scope.seconds is None else begin + scope.seconds
    verdicts = list(
        _verdicts(store, newest, _chosen(shards, scope, seed), deadline, scope, progress or Silent())
    )
    return _account(store, verdicts, problems, unfinished, len(shards), seed, begin)


def _open(root: Path) -> tuple[EmbeddingStore | None, str]:
    """The store, or why it does not open; what is no store, or a newer one's, is an error as everywhere."""
    try:
        return EmbeddingStore.open(root), ""
    except CorruptionError as error:
        return None, error.message
    except InputError as error:
        if not (root / layout.EMBEDDINGS / "c").is_dir():
            raise  # no store, or one that holds nothing yet
        group = root / layout.GROUP_FILE
        return None, error.message if group.exists() else f"{group} is missing."


def _chosen(shards: npt.NDArray[np.int64], scope: Scope, seed: int) -> npt.NDArray[np.int64]:
    if scope.share == 1 and scope.seconds is None:
        return shards
    order = np.random.default_rng(seed).permutation(shards)
    return order[: math.ceil(scope.share * len(shards))]


def _verdicts(
    store: EmbeddingStore,
    newest: NewestState,
    shards: npt.NDArray[np.int64],
    deadline: float | None,
    scope: Scope,
    progress: Progress,
) -> Iterator[ShardVerdict]:
    """Judge shards by a few threads; after the deadline no further one is begun."""
    threads = min(_THREADS, (os.cpu_count() or 1) + 1)
    progress.start("verifying shards", len(shards))
    pending: set[Future[ShardVerdict]] = set()
    with ThreadPoolExecutor(threads, thread_name_prefix="embedcache-verify") as pool:
        for shard in shards.tolist():
            if deadline is not None and time.perf_counter() >= deadline:
                break
            pending.add(pool.submit(judge_shard, store, newest, shard, digests=scope.digests))
            if len(pending) >= 2 * threads:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                progress.advance(len(done))
                yield from (future.result() for future in done)
        for future in pending:
            yield future.result()
            progress.advance()
    progress.finish()


def judge_shard(
    store: EmbeddingStore, newest: NewestState, shard: int, *, digests: bool = False
) -> ShardVerdict:
    """The verdict on one shard; before it is accused, what the journal says meanwhile is compared as well."""
    record = store.state.shard_record(shard)
    assert record is not None  # only recorded shards are judged
    verdict = check_shard(store.path, record, store.form, store.shard_tiles, digests=digests)
    tried = {_key(record)}

    def undecided(state: StoreState) -> bool:
        # for a moment the files are those of neither record: scales are replaced before their shard
        return shard in state.intents

    for state in newest.looks(undecided):
        if verdict.intact:
            break
        for other in (state.intents.get(shard), state.shard_record(shard)):
            if other is None or (_key(other) in tried and not undecided(state)):
                continue
            tried.add(_key(other))
            again = check_shard(store.path, other, store.form, store.shard_tiles, digests=digests)
            if again.intact or len(again.broken) < len(verdict.broken):
                verdict = again
    return verdict


def _key(record: ShardRecord) -> tuple[str, bytes]:
    """What tells two records of a shard apart: the file, and the tiles of it that count."""
    return record.digest, record.slots.tobytes()


def _account(
    store: EmbeddingStore,
    verdicts: list[ShardVerdict],
    problems: list[Problem],
    unfinished: list[str],
    total: int,
    seed: int,
    begin: float,
) -> Verification:
    corrupt = missing = recorded = 0
    numbers = []
    for verdict in sorted(verdicts, key=lambda verdict: verdict.record.shard):
        base = verdict.record.shard * store.shard_tiles
        numbers.append(base + verdict.record.slots)
        recorded += len(verdict.record.slots)
        if not verdict.there:
            missing += len(verdict.record.slots)
        else:
            corrupt += len(verdict.broken)
        problems += _problems(store, verdict, base)
    return Verification(
        store.path,
        ok=recorded - corrupt - missing,
        corrupt=corrupt,
        missing=missing,
        shards_checked=len(verdicts),
        shards_total=total,
        bytes=sum(verdict.size for verdict in verdicts),
        seconds=time.perf_counter() - begin,
        seed=seed,
        problems=tuple(problems),
        litter=(*unfinished, *_litter(store.path)),
        unclaimed=_unclaimed(store.path, store),
        broken={verdict.record.shard: verdict for verdict in verdicts if not verdict.intact},
        verified=np.concatenate(numbers) if numbers else np.zeros(0, np.int64),
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


def _litter(root: Path) -> tuple[str, ...]:
    return tuple(f"{item.path}: {item.what}; {item.why}" for item in partial_files(root))


def _unclaimed(root: Path, store: EmbeddingStore | None = None) -> tuple[str, ...]:
    found = [*kept_copies(root)]
    if store is not None:
        with suppress(
            CorruptionError, MismatchError
        ):  # of a journal damaged meanwhile; the next look says so
            found += unrecorded_shards(store)
    return tuple(map(str, found))
