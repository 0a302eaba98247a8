"""Turns finished work into journal records: the one place that changes a store, while its lock is held.

How the embeddings of one shard become a durable file is in ``commit.py``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import InputError, MismatchError
from embedcache.files import read_error, sha256_file
from embedcache.store import layout
from embedcache.store.commit import Embeddings, GivenTiles, commit_shard
from embedcache.store.journal import JournalWriter
from embedcache.store.record import pack_flags, table_record
from embedcache.store.spec import leaf_differences
from embedcache.volume.volume import ImageRecord

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore


class StoreWriter:
    """The only writer of a store, while its lock is held; made by ``EmbeddingStore.writer()``.

    What it commits shows at once in the store object that made it.
    """

    def __init__(self, store: EmbeddingStore, journal: JournalWriter) -> None:
        self._store = store
        self._journal = journal
        self._numerics: int | None = None
        self._name = f"process {os.getpid()} on {socket.gethostname()}"

    def decide_numerics(self, numerics: Mapping[str, Any], *, allow: bool = False) -> dict[str, Any]:
        """Fix the numerics under which the following commits are made.

        The first ones asked for become the store's. ``allow`` lets further ones in; they are recorded.

        Returns
        -------
        dict
            The numerics that hold.

        Raises
        ------
        MismatchError
            When the store has others and ``allow`` is not set; with the fields that differ.
        """
        known, asked = self._store.state.numerics, dict(numerics)
        if asked not in known:
            if known and not allow:
                raise MismatchError(
                    f"{self._store.path} was encoded under other numerics; results may differ in their last bits.",
                    differences=leaf_differences(known[0], asked),
                    hint="Use the recorded ones, or allow the difference with --allow-numerics.",
                )
            self._record({"kind": "numerics", "numerics": asked})
            self._store.write_group()
        self._numerics = self._store.state.numerics.index(asked)
        return asked

    def add_images(self, records: Sequence[ImageRecord], table: npt.NDArray[np.int64]) -> None:
        """Append images to a collection.

        Parameters
        ----------
        records : sequence of ImageRecord
            The new images only.
        table : ndarray of int64, shape (N, 5)
            The whole table: the rows there, then those of the new images.

        Raises
        ------
        MismatchError
            When the table does not begin with the rows there.
        """
        store, before = self._store, self._store.table
        if len(table) < len(before) or not np.array_equal(table[: len(before)], before):
            raise MismatchError(
                f"{store.path}: the table of tiles does not begin with the {len(before)} rows that are there.",
                hint="Images may only be added, never taken out or reordered.",
            )
        # rows first: until the journal speaks of them nobody looks at them, and the next writer takes back
        # lengths that the journal does not confirm
        layout.write_tiles(store.path, table, first=len(before))
        layout.write_arrays(store.path, len(table), store.shard_tiles)
        self._record(table_record(len(table), records))
        store.reload_table()
        store.write_group()

    def add_selection(self, selection: Mapping[str, Any], wanted: npt.NDArray[np.bool_]) -> None:
        """Record what was asked for.

        Parameters
        ----------
        selection : dict
            The words of the selection, JSON values.
        wanted : ndarray of bool, shape (N,)
            Tiles that it touches; the store wants the union of all selections.
        """
        if wanted.shape != (len(self._store),):
            raise InputError(
                f"wanted has shape {wanted.shape}; the store has {len(self._store)} tile numbers."
            )
        state = self._store.state
        if dict(selection) in state.selections and not (wanted & ~state.wanted).any():
            return
        self._record({"kind": "selection", "selection": dict(selection), "wanted": pack_flags(wanted)})

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
        """Make tiles of one shard durable; all keys are tile numbers of that shard.

        Tiles committed before and not given again stay, byte for byte. A tile that is committed stays so, even
        when it is now said to be skipped or failed.

        Parameters
        ----------
        shard : int
            Number of the shard.
        embeddings : dict of int to ndarray of float16, shape (256, 64, 64)
            Finite.
        input_digests : dict of int to str
            SHA-256 (64 hex digits) of the pixels of each of them.
        skipped, failed : dict of int to str, optional
            Reasons.
        seconds : dict of str to float, optional
            Wall time of each stage.

        Returns
        -------
        int
            Bytes written to the shard file; 0 when it did not need to change.

        Raises
        ------
        StorageError
            When the disk refuses; what was committed before still reads.
        CorruptionError
            When a tile that is to be kept is broken.
        """
        if shard in self._store.state.intents:
            self.settle()  # an earlier call of this writer failed between announcing and recording
        given = GivenTiles(embeddings, input_digests, skipped or {}, failed or {})
        return commit_shard(
            self._store,
            shard,
            given,
            self._record,
            numerics=self._numerics,
            writer=self._name,
            seconds={name: round(float(value), 6) for name, value in (seconds or {}).items()},
        )

    def settle(self) -> int:
        """Decide what a killed writer left undecided: announced replacements, lengths; returns how many shards."""
        store, settled = self._store, 0
        for shard, intent in sorted(store.state.intents.items()):
            path = layout.shard_path(store.path, shard)
            old = store.state.shard_record(shard)
            try:
                found = f"sha256:{sha256_file(path)}" if path.is_file() else ""
            except OSError as error:
                raise read_error(error, path) from error
            for candidate in (intent, old):
                if candidate is not None and candidate.digest == found:
                    self._record(candidate.to_dict(store.shard_tiles))
                    settled += 1
                    break
        layout.write_arrays(store.path, len(store), store.shard_tiles)
        store.write_group()
        return settled

    def _record(self, record: Mapping[str, Any]) -> None:
        place, numbered = self._journal.append(record)
        self._store.state.apply(place, numbered)
