"""Turns finished embeddings into committed shards: the one place that changes a store.

A commit is: shard under a temporary name, fsync, rename, fsync of the folder, journal line, fsync. Where the
shard already holds committed tiles, an intent with the new digests is journalled before the rename, so that
after a crash it is known which of the two the file is.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError, InputError, MismatchError
from embedcache.files import Buffer, partial_name, publish_file, read_error, sha256_file, stage_file
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import layout
from embedcache.store.compose import empty, merge, with_reasons
from embedcache.store.journal import JournalWriter
from embedcache.store.record import DIGEST_BYTES, ShardRecord, pack_flags, table_record
from embedcache.store.shard import CRC_BYTES, ShardFile, embedding_bytes, encode_index
from embedcache.store.spec import leaf_differences
from embedcache.volume.volume import ImageRecord

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

Embeddings = Mapping[int, npt.NDArray[np.float16]]


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
        base = self._check_tiles(shard, embeddings, input_digests, skipped or {}, failed or {})
        old = self._store.state.shard_record(shard) or empty(shard)
        new = {tile - base: array for tile, array in sorted(embeddings.items())}
        digests = {tile - base: bytes.fromhex(input_digests[tile]) for tile in embeddings}
        record = replace(
            self._merged(old, new, digests),
            numerics=self._numerics,
            writer=self._name,
            seconds={name: round(float(value), 6) for name, value in (seconds or {}).items()},
        )
        record = with_reasons(record, old, base, skipped or {}, failed or {})
        written = 0
        if new:
            record = self._write_shard(old, record, new)
            written = record.size
        self._record(record.to_dict(self._store.shard_tiles))
        return written

    def _merged(
        self, old: ShardRecord, new: Mapping[int, npt.NDArray[np.float16]], digests: Mapping[int, bytes]
    ) -> ShardRecord:
        record = merge(old, new, digests)
        for slot, low, high in zip(record.slots.tolist(), record.minimum, record.maximum, strict=True):
            if not (np.isfinite(low) and np.isfinite(high)):
                tile = record.shard * self._store.shard_tiles + slot
                raise EmbedcacheError(f"tile {tile}: an embedding that is not finite was to be stored")
        return record

    def _write_shard(
        self, old: ShardRecord, record: ShardRecord, new: Mapping[int, npt.NDArray[np.float16]]
    ) -> ShardRecord:
        store = self._store
        final = layout.shard_path(store.path, record.shard)
        partial = partial_name(store.path / layout.EMBEDDINGS / str(record.shard))
        digest = hashlib.sha256()
        size = stage_file(partial, _hashed(self._pieces(record, new), digest))
        record = replace(record, digest=f"sha256:{digest.hexdigest()}", size=size)
        if len(old.slots):
            self._record(record.to_dict(store.shard_tiles, kind="intent"))
        publish_file(partial, final)
        return record

    def _pieces(self, record: ShardRecord, new: Mapping[int, npt.NDArray[np.float16]]) -> Iterator[Buffer]:
        """The shard's bytes in order: kept chunks from the file there, new ones from memory, the index."""
        store = self._store
        kept = [slot for slot in record.slots.tolist() if slot not in new]
        try:
            source = (
                ShardFile(layout.shard_path(store.path, record.shard), store.shard_tiles) if kept else None
            )
            for slot, crc in zip(record.slots.tolist(), record.crc.tolist(), strict=True):
                array = new.get(slot)
                if array is None and source is not None:
                    array, found = source.read(slot)
                    if found != crc:
                        raise CorruptionError(f"slot {slot} of {source.path} differs from its record")
                assert array is not None
                yield embedding_bytes(array)
                yield crc.to_bytes(CRC_BYTES, "little")
        except CorruptionError as error:
            raise CorruptionError(
                f"{store.path}: shard {record.shard} cannot be extended: {error.message}.",
                hint="Restore that file from a copy, or encode again into another --store.",
            ) from error
        yield encode_index(record.slots, store.shard_tiles)

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

    def _check_tiles(
        self,
        shard: int,
        embeddings: Embeddings,
        input_digests: Mapping[int, str],
        skipped: Mapping[int, str],
        failed: Mapping[int, str],
    ) -> int:
        """First tile number of the shard, once all that was given is known to be fit to be stored."""
        store = self._store
        base = shard * store.shard_tiles
        numbers = [*embeddings, *skipped, *failed]
        if len(set(numbers)) != len(numbers):
            raise EmbedcacheError(f"shard {shard}: a tile is given as two of encoded, skipped and failed")
        for tile in numbers:
            if not (base <= tile < base + store.shard_tiles and 0 <= tile < len(store)):
                raise EmbedcacheError(f"tile {tile} does not belong to shard {shard} of {store.path}")
            if store.table[tile, 0] < 0:
                raise EmbedcacheError(f"number {tile} of {store.path} has no tile")
        for tile, array in embeddings.items():
            if array.shape != EMBEDDING_SHAPE or array.dtype != np.float16:
                raise EmbedcacheError(f"tile {tile}: an embedding of shape {array.shape}, {array.dtype}")
            if len(input_digests.get(tile, "")) != 2 * DIGEST_BYTES:
                raise EmbedcacheError(f"tile {tile}: no SHA-256 of its input pixels")
        return base


def _hashed(pieces: Iterator[Buffer], digest: hashlib._Hash) -> Iterator[Buffer]:
    for piece in pieces:
        digest.update(piece)
        yield piece
