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
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, InputError
from embedcache.progress import Progress, Silent
from embedcache.store import layout
from embedcache.store.care.account import account, litter, unclaimed
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
            litter=litter(root),
            unclaimed=unclaimed(root),
        )
    newest = NewestState(store)
    found, unfinished = check_files(store, newest)
    problems += found
    shards = np.unique(np.flatnonzero(store.committed) // store.shard_tiles)
    deadline = None if scope.seconds is None else begin + scope.seconds
    verdicts = list(
        _verdicts(store, newest, _chosen(shards, scope, seed), deadline, scope, progress or Silent())
    )
    return account(store, verdicts, problems, unfinished, len(shards), seed, begin)


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
