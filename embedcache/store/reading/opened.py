"""Turns numbers of shards into their open files, as many as may be open at a time."""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from embedcache.files import crc32c
from embedcache.store.journal.state import StoreState
from embedcache.store.reading.checks import checked_slots
from embedcache.store.reading.mapped import MappedChunks, MappedShard
from embedcache.store.shards.scales import ShardScales, read_scales
from embedcache.store.shards.shard import INT8, ShardFile

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

OPEN_SHARDS = 1024
"""Shard files that a process keeps open at most, if the system allows it four times as many."""


class OpenShard:
    """A shard's files as they were when the record of this number held; threads may share it.

    Parameters
    ----------
    sequence : int
        Of the record.
    chunks : ShardFile
    scales : ShardScales or None
        Of an int8 store.
    checked : bytearray or None
        Which slots need not be checked again, 0 or 1 each; None: every read is alike.
    slots : int
        Room of the shard.
    mapped_chunks : MappedChunks
        Of its reader.
    """

    def __init__(
        self,
        sequence: int,
        chunks: ShardFile,
        scales: ShardScales | None,
        checked: bytearray | None,
        slots: int,
        mapped_chunks: MappedChunks,
    ) -> None:
        self._mapped_chunks = mapped_chunks
        self.sequence, self.chunks, self.scales, self.checked = sequence, chunks, scales, checked
        self._read_before = bytearray(slots)
        self._mapped: MappedShard | None = None
        self._mappable = True

    def read_into(self, slot: int, out: memoryview, *, check: bool) -> int | None:
        """Read the chunk of a slot into ``out``; its CRC-32C if it is to be checked.

        The first time from the file, as always where it is not in the system's cache: the disk answers that
        fastest.

        Raises
        ------
        CorruptionError, StorageError
            As :class:`~embedcache.store.shards.shard.ShardFile`.
        """
        if self._read_before[slot] and self._mappable:
            try:
                mapped = self._mapped or MappedShard(self.chunks, self._mapped_chunks)
                self._mapped = mapped
                if mapped.at_hand(slot):
                    return mapped.copy_into(slot, out, check=check)
            except OSError:  # no longer whole, an old system, no address space: read as a file
                self._mappable, self._mapped = False, None
        if check:
            found = self.chunks.read_into(slot, out)
            self._read_before[slot] = 1
            return found
        self.chunks.read_unchecked(slot, out)
        self._read_before[slot] = 1
        return None


_using: set[int] = set()
"""Readers of this process that have shards open, by id; changed and counted in single steps, never walked."""


class OpenShards:
    """The open shards of one reader; threads may share them.

    Parameters
    ----------
    store : EmbeddingStore
    limit : int or None
        Shards kept open at most; None: a share of 1,024, or of a quarter of what the system allows, with all
        other readers of this process that have any open.
    once : bool
        Whether an embedding is checked on its first read only.
    """

    def __init__(self, store: EmbeddingStore, *, limit: int | None, once: bool) -> None:
        self._store, self._once = store, once
        self._limit = limit
        self._mapped = MappedChunks()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def _room(self) -> int:
        """Shards that may be open: by default this reader's share of what the system allows the process."""
        if self._limit is not None:
            return max(1, self._limit)
        return max(1, _allowed() // max(1, len(_using)))

    def get(self, shard: int, state: StoreState) -> OpenShard:
        """The open files of a shard; opened anew when the journal speaks of newer ones."""
        sequence = int(state.shard_sequence[shard])
        with self._lock:
            kept = self._open.get(shard)
            if kept is not None and kept.sequence == sequence:
                self._open.move_to_end(shard)
                return kept
        opened = self._opened(shard, sequence)  # others go on meanwhile
        with self._lock:
            kept = self._open.get(shard)
            if kept is None or kept.sequence != sequence:
                kept = self._open[shard] = opened
                _using.add(id(self))
                while len(self._open) > self._room():
                    self._open.popitem(last=False)  # closed when the last thread has finished with it
            return kept

    def _opened(self, shard: int, sequence: int) -> OpenShard:
        store = self._store
        chunks = store.open_shard(shard)
        scales = read_scales(store.path, shard, store.shard_tiles) if store.form == INT8 else None
        checked = None
        if self._once:
            scales_crc = 0 if scales is None else crc32c(scales.rows.tobytes())
            identity = (sequence, *chunks.identity, scales_crc)
            checked = checked_slots(store.fingerprint, shard, identity, store.shard_tiles)
        return OpenShard(sequence, chunks, scales, checked, store.shard_tiles, self._mapped)

    def forget(self, shard: int) -> None:
        """Open a shard anew when it is asked for next."""
        with self._lock:
            self._open.pop(shard, None)

    def forget_all(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._open.clear()
            _using.discard(id(self))

    def __del__(self) -> None:
        _using.discard(id(self))


def _allowed() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_SHARDS if files == resource.RLIM_INFINITY else min(OPEN_SHARDS, files // 4)
