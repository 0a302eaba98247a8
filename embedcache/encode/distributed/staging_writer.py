"""Turns what the pipeline commits into staged shards: the writer of a worker, which holds no lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from embedcache.encode.distributed.messages import Staged
from embedcache.errors import MismatchError, StorageError
from embedcache.files import holder_name
from embedcache.store import EmbeddingStore
from embedcache.store.shards.given import Embeddings, GivenTiles
from embedcache.store.shards.staging import stage_shard
from embedcache.store.spec import leaf_differences

PUBLISHING_SECONDS = 120.0
"""For so long a worker that is to extend a shard waits until its first part is published."""

_LOOK_SECONDS = 0.05


class StagingWriter:
    """Stages shards of one attempt, and hands on what is to be published.

    Parameters
    ----------
    store : EmbeddingStore
        Opened by this process; its snapshot is kept up to date here.
    attempt : int
        Tag of the staged files.
    numerics : dict or None
        Those that hold; None: whatever the encoder decides.
    hand_on : callable
        Takes each ``Staged`` value.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        attempt: int,
        numerics: Mapping[str, Any] | None,
        hand_on: Callable[[Staged], None],
    ) -> None:
        self._store, self._attempt, self._hand_on = store, attempt, hand_on
        self._numerics = None if numerics is None else dict(numerics)
        self._digests: dict[int, str] = {}
        self._places = 0

    def decide_numerics(self, numerics: Mapping[str, Any], *, allow: bool = False) -> dict[str, Any]:
        """Take the encoder's numerics, when they are those that hold or others are allowed.

        Raises
        ------
        MismatchError
            With the fields that differ.
        """
        found = dict(numerics)
        if self._numerics is not None and found != self._numerics and not allow:
            raise MismatchError(
                "its encoder cannot compute under this store's numerics; results may differ in their last bits.",
                differences=leaf_differences(self._numerics, found),
                hint="Use workers of one kind of device and one version of torch, or allow the difference with "
                "--allow-numerics.",
            )
        self._numerics = found
        return found

    def commit_shard(
        self,
        shard: int,
        *,
        embeddings: Embeddings,
        input_digests: Mapping[int, str],
        skipped: Mapping[int, str] | None = None,
        failed: Mapping[int, str] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> int:
        """Stage tiles of one shard; arguments and errors are those of ``StoreWriter.commit_shard``."""
        self._see_published(shard)
        given = GivenTiles(embeddings, input_digests, skipped or {}, failed or {})
        staged = stage_shard(
            self._store,
            shard,
            given,
            writer=holder_name(),
            seconds={name: round(float(value), 6) for name, value in (seconds or {}).items()},
            tag=self._attempt,
        )
        self._digests[shard] = staged.record.digest
        self._hand_on(
            Staged(
                attempt=self._attempt,
                place=self._places,
                shard=staged.to_dict(self._store.shard_tiles),
                encoded=tuple(embeddings),
                skipped=tuple(given.skipped),
                failed=dict(given.failed),
                numerics=dict(self._numerics or {}),
            )
        )
        self._places += 1
        return staged.bytes_written

    def _see_published(self, shard: int) -> None:
        """Wait until an earlier part of a shard is the store's: the next part carries its tiles over."""
        expected = self._digests.get(shard)
        end = time.monotonic() + PUBLISHING_SECONDS
        while expected is not None:
            self._store.catch_up()
            record = self._store.state.shard_record(shard)
            if record is not None and record.digest == expected:
                return
            if time.monotonic() > end:
                raise StorageError(
                    f"{self._store.path}: shard {shard} was staged and is not published after "
                    f"{PUBLISHING_SECONDS:.0f} s.",
                    hint="The coordinator is busy or gone, or its machine's file system shows changes late.",
                )
            time.sleep(_LOOK_SECONDS)
