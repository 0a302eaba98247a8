"""Turns finished work into journal records: the one place that changes a store, while its lock is held.

How the embeddings of one shard become a durable file is in ``commit.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError, InputError, MismatchError, command
from embedcache.files import holder_name, mutex
from embedcache.store import layout
from embedcache.store.adding import add_images, add_views, take_back_columns
from embedcache.store.journal.lines import MAIN, shards_file
from embedcache.store.journal.packing import pack_flags
from embedcache.store.journal.replay import append
from embedcache.store.shards.commit import commit_shard, publish_shard, settle_shard
from embedcache.store.shards.given import Embeddings, GivenTiles
from embedcache.store.shards.staging import StagedShard
from embedcache.store.spec import leaf_differences
from embedcache.volume.volume import ImageRecord

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore


class StoreWriter:
    """The only writer of a store or of some of its shards, while their lock is held; made by ``store.writer()``.

    What it commits shows at once in the store object that made it. Its records of shards go to a journal file of
    its own; what concerns the whole store is journalled under the mutex, after a look at what others journalled.

    Attributes
    ----------
    shards : range or None
        The shards that it may commit; ``None``: all.
    """

    def __init__(self, store: EmbeddingStore, shards: range | None, require_lock: Callable[[], None]) -> None:
        self.shards = shards
        self._require_lock = require_lock
        self._store = store
        self._numerics: int | None = None
        self._name = holder_name()
        self._threads = threading.RLock()
        self._has_mutex = False
        self._unsure = False

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
        store, asked = self._store, dict(numerics)
        with self.store_wide():
            known = store.state.numerics
            if asked not in known:
                if known and not allow:
                    raise MismatchError(
                        f"{store.path} was encoded under other numerics; results may differ in their last bits.",
                        differences=leaf_differences(known[0], asked),
                        hint="Use the recorded ones, or allow the difference with --allow-numerics.",
                    )
                append(store.state, MAIN, {"kind": "numerics", "numerics": asked})
                store.write_group()
            self._numerics = store.state.numerics.index(asked)
        return asked

    def add_images(self, images: Sequence[ImageRecord], table: npt.NDArray[np.int64]) -> None:
        """Append images to a collection; one that another writer has appended already is not appended again.

        The whole list is given, so that it is known that a tile's number means the same image to this writer and
        to everybody else.

        Parameters
        ----------
        images : sequence of ImageRecord
            All images: those there, in their order, then new ones. Those that others appended meanwhile may be
            missing at the end.
        table : ndarray of int64, shape (N, 5), or (N, 6) of a store that has views
            The tiles of all of them, and the views that are there; those of new images are added after these.

        Raises
        ------
        MismatchError
            When the store has other images, or other tiles of them, or an image would be there twice.
        """
        with self.store_wide():
            add_images(self._store, images, table)

    def add_views(self, views: Collection[int]) -> None:
        """Give all places of the store, also images that come later, tile numbers in further views.

        Numbers that are there never change. Where the views are there, nothing is written.

        Parameters
        ----------
        views : collection of int
            Of 0 to 7; the views that are there stay.

        Raises
        ------
        InputError
            When there is no such view, or there would be too many tiles.
        """
        with self.store_wide():
            add_views(self._store, views)

    def add_selection(self, selection: Mapping[str, Any], wanted: npt.NDArray[np.bool_]) -> None:
        """Record what was asked for.

        Parameters
        ----------
        selection : dict
            The words of the selection, JSON values.
        wanted : ndarray of bool, shape (N,)
            Tiles that it touches; the store wants the union of all selections. Of a collection to which others
            have added images meanwhile, these may be missing at the end.

        Raises
        ------
        InputError
            When it speaks of more tiles than there are.
        """
        with self.store_wide():
            state = self._store.state
            if wanted.ndim != 1 or len(wanted) > state.n_tiles:
                raise InputError(
                    f"wanted has shape {wanted.shape}; the store has {state.n_tiles} tile numbers."
                )
            wanted = np.pad(wanted, (0, state.n_tiles - len(wanted)))
            if dict(selection) in state.selections and not (wanted & ~state.wanted).any():
                return
            record = {"kind": "selection", "selection": dict(selection), "wanted": pack_flags(wanted)}
            append(state, MAIN, record)

    def change_source(
        self,
        volume: Mapping[str, Any] | None,
        images: Sequence[tuple[int, ImageRecord]],
        stale: npt.NDArray[np.bool_],
    ) -> None:
        """Record that the source's pixels are others now: tiles that they touch are no longer committed.

        One record says all of it, so that a kill leaves either the store as it was or the changed one.

        Parameters
        ----------
        volume : dict or None
            The volume's identity from now on; None: as it was.
        images : sequence of (int, ImageRecord)
            Images of a collection that are others now, by their place in the table.
        stale : ndarray of bool, shape (N,)
            Tiles whose embeddings no longer belong to the source.

        Raises
        ------
        EmbedcacheError
            When this writer does not hold the whole store.
        CorruptionError
            When a shard's file is neither what is recorded nor what was announced.
        """
        store = self._store
        if self.shards is not None:
            raise EmbedcacheError(f"{store.path}: only a writer of the whole store may change its source")
        with self.store_wide():
            if store.state.intents:  # what they announced was made of the pixels before
                raise CorruptionError(
                    f"{store.path}: the file of shard {min(store.state.intents)} is not one that was recorded.",
                    hint=f"`{command('repair', store.path)}` mends it; then run the same command again.",
                )
            if store.state.attributes is None:
                append(store.state, MAIN, {"kind": "store", "attributes": store.attributes})
            spec = store.spec if volume is None else replace(store.spec, volume=dict(volume))
            record = {
                "kind": "changed",
                "volume": None if volume is None else spec.to_dict()["volume"],
                "images": [[index, image.to_dict()] for index, image in images],
                "fingerprint": spec.fingerprint,
                "stale": pack_flags(stale),
            }
            append(store.state, MAIN, record)
            store.take_attributes()
            store.write_group()

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
        embeddings : dict of int to ndarray of float16, shape (256, 64, 64), or Quantised
            Finite; in the form that the store keeps, ``Quantised`` in an int8 store.
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
        self._make_ready(shard)
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

    def publish_shard(self, staged: StagedShard) -> bool:
        """Commit a shard whose files another process has staged, under the numerics that were decided last.

        Returns
        -------
        bool
            False, and nothing is changed, when the shard is no longer as it was when it was staged.

        Raises
        ------
        StorageError
            When the disk refuses; what was committed before still reads.
        CorruptionError
            When a folder of the store is a link.
        """
        self._make_ready(staged.shard)
        return publish_shard(self._store, staged, self._record, numerics=self._numerics)

    def settle(self) -> int:
        """Decide what a killed writer left undecided: announced replacements, lengths; returns how many shards."""
        store, settled = self._store, 0
        for shard in sorted(store.state.intents):
            if self._covers(shard):
                settled += settle_shard(store, shard, self._record)
        with self.store_wide():
            take_back_columns(store)
            views = bool(store.state.segments)
            layout.write_arrays(
                store.path, len(store), store.shard_tiles, store.spec.store_dtype, views=views
            )
            store.write_group()
        return settled

    def may_append(self, name: str) -> bool:
        """Whether a file of the journal is this writer's, when it holds the mutex."""
        return self.shards is None or name in (MAIN, shards_file(self.shards))

    @contextmanager
    def store_wide(self) -> Iterator[None]:
        """Hold the mutex for the block, which must be short, with all that others have journalled seen."""
        with self._threads:
            if self._has_mutex:
                yield
                return
            with mutex(self._store.path / layout.JOURNAL, guarded=self._store.path):
                self._has_mutex = True
                try:
                    self._store.catch_up()
                    yield
                finally:
                    self._has_mutex = False

    def _make_ready(self, shard: int) -> None:
        """Refuse a shard that is not held, and decide what an earlier call left undecided."""
        if not self._covers(shard):
            raise EmbedcacheError(f"shard {shard} of {self._store.path} is not held by this writer")
        if self._unsure:  # the line of an append that failed may be there all the same
            with self.store_wide():
                self._unsure = False
        if shard in self._store.state.intents:
            self.settle()  # an earlier call of this writer failed between announcing and recording

    def _covers(self, shard: int) -> bool:
        return self.shards is None or shard in self.shards

    def _record(self, record: Mapping[str, Any]) -> None:
        """Journal what is now so of a shard."""
        with self._threads:
            self._require_lock()
            self._unsure = True
            if self.shards is None:
                with self.store_wide():
                    append(self._store.state, MAIN, record)
            else:
                append(self._store.state, shards_file(self.shards), record)
            self._unsure = False
