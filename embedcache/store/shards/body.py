"""Turns the embeddings of one shard, kept and new, into the bytes of its file, one piece after the other.

Checksums and extremes are taken just before a piece goes out, its part of the file's SHA-256 in a thread beside
the writing: so everything that a commit computes is hidden behind the disk.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from embedcache.errors import EmbedcacheError
from embedcache.files import Buffer
from embedcache.store.shards.kept import KeptTiles
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.rows import TileRow, measure
from embedcache.store.shards.shard import (
    CRC_BYTES,
    Form,
    Stored,
    chunk_numbers,
    encode_index,
    payload,
    shard_index,
)

_AHEAD = 32
"""Pieces that may wait for their digest, two to a chunk; each keeps its memory."""


class FileDigest:
    """SHA-256 of pieces that are written meanwhile; used as a context."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> FileDigest:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def passing(self, *pieces: Buffer) -> Iterator[Buffer]:
        """The pieces themselves; they must not be changed afterwards."""
        for piece in pieces:
            self._waiting.append(self._thread.submit(self._sha256.update, piece))
            yield piece
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def result(self) -> str:
        """``sha256:…`` of all pieces that were passed."""
        while self._waiting:
            self._waiting.popleft().result()
        return f"sha256:{self._sha256.hexdigest()}"


class ShardBody:
    """The bytes of a shard, and what they turned out to be.

    Parameters
    ----------
    shard : int
        Number of the shard.
    form : Form
        Of its embeddings.
    shard_tiles : int
        Slots of a shard.
    new : dict of int to (embedding, bytes)
        By slot: embeddings, and the SHA-256 of the pixels of each.
    kept : dict of int to TileRow
        By slot: what the record says of the tiles that go over unchanged.
    source : KeptTiles
        Where these are.

    Attributes
    ----------
    rows : dict of int to TileRow
        Of all tiles, once :meth:`pieces` has ended.
    scales : dict of int to ndarray of float32, shape (256,)
        Of all tiles of an int8 store, once :meth:`pieces` has ended.
    digest : str
        ``sha256:…`` of all bytes, once :meth:`pieces` has ended.
    """

    def __init__(
        self,
        shard: int,
        form: Form,
        shard_tiles: int,
        new: Mapping[int, tuple[Stored, bytes]],
        kept: Mapping[int, TileRow],
        source: KeptTiles,
    ) -> None:
        self.shard, self._form, self._shard_tiles = shard, form, shard_tiles
        self._new, self._kept, self._source = new, kept, source
        self.rows: dict[int, TileRow] = {}
        self.scales: dict[int, npt.NDArray[np.float32]] = {}
        self.digest = ""
        self._measured: dict[tuple[int, bytes], TileRow] = {}

    def pieces(self) -> Iterator[Buffer]:
        """The file's bytes in order.

        Raises
        ------
        CorruptionError
            When a tile that is kept is not the recorded one.
        EmbedcacheError
            When a new embedding is not finite.
        """
        with FileDigest() as digest:
            first_slots: dict[tuple[bytes, int], int] = {}
            for slot in sorted({*self._new, *self._kept}):
                row = self.rows[slot] = self._row(slot)
                first = first_slots.setdefault(row.key, slot)
                if first == slot:
                    yield from digest.passing(self._payload(slot), row.crc.to_bytes(CRC_BYTES, "little"))
                else:
                    self._require_equal(first, slot)
            yield from digest.passing(encode_index(self._index()))
            self.digest = digest.result()

    def _row(self, slot: int) -> TileRow:
        if slot in self._kept:
            row = self._kept[slot]
            if row.scale_crc is not None:
                self.scales[slot] = self._source.scales(slot, row)
            return row
        stored, input_digest = self._new[slot]
        if isinstance(stored, Quantised):
            self.scales[slot] = stored.scales
        return self._measure(slot, stored, input_digest)

    def _measure(self, slot: int, stored: Stored, input_digest: bytes) -> TileRow:
        """The row of a new embedding; of one that was given for several tiles, taken once."""
        key = (id(stored), input_digest)
        if key not in self._measured:
            row = measure(stored, input_digest)
            if not (np.isfinite(row.minimum) and np.isfinite(row.maximum)):
                tile = self.shard * self._shard_tiles + slot
                raise EmbedcacheError(f"tile {tile}: an embedding that is not finite was to be stored")
            self._measured[key] = row
        return self._measured[key]

    def _payload(self, slot: int) -> memoryview:
        if slot in self._kept:
            return self._source.payload(slot, self._kept[slot])
        return payload(self._new[slot][0])

    def _require_equal(self, first: int, slot: int) -> None:
        """Refuse different embeddings of equal pixels and checksum: one chunk cannot be both."""
        both = self._new.get(first), self._new.get(slot)
        if both[0] is not None and both[1] is not None and both[0][0] is both[1][0]:
            return
        one, other = (np.frombuffer(self._payload(number), np.uint8) for number in (first, slot))
        if not np.array_equal(one, other):
            raise EmbedcacheError(
                f"shard {self.shard}: slots {first} and {slot} have equal pixels and checksums, "
                "but different embeddings"
            )

    def _index(self) -> npt.NDArray[np.uint64]:
        slots = np.array(sorted(self.rows), dtype=np.int64)
        chunks = chunk_numbers([self.rows[int(slot)].key for slot in slots])
        return shard_index(slots, chunks, self._form, self._shard_tiles)
