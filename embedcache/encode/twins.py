"""Turns tiles of equal pixels (air, masked regions) into copies of one embedding, encoded once.

What a tile's embedding is follows from its pixels alone, within a store. So a tile whose pixel digest is
recorded already is not encoded again: its embedding is read from the store, checked, and committed under the new
number as well. The bytes are those that encoding would give.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from embedcache.errors import CorruptionError, MissingTilesError, StorageError
from embedcache.store import EmbeddingStore
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.shard import Stored

REMEMBERED = 8
"""Embeddings kept in memory: of a volume's air there is one."""


class Twins:
    """The embeddings that a store holds, by the pixels they were made of.

    Parameters
    ----------
    store : EmbeddingStore
        Open for writing; what is committed is added by :meth:`learn`.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self._reader = store.reader()
        self._remembered: OrderedDict[bytes, Stored] = OrderedDict()
        self._learned: dict[bytes, int] = {}
        numbers, digests = store.recorded_inputs()
        if (
            len(store.state.numerics) > 1
        ):  # made under several numerics: equal pixels need not give equal bits
            numbers, digests = numbers[:0], digests[:0]
        keys = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers, self._digests = keys[order], numbers[order], digests[order]

    def find(self, digest: str) -> Stored | None:
        """The embedding of these pixels; None when it is not known, or what is stored of it is damaged."""
        wanted = bytes.fromhex(digest)
        known = self._remembered.get(wanted)
        if known is not None:
            self._remembered.move_to_end(wanted)
            return known
        number = self._number(wanted)
        embedding = None if number is None else self._read(number)
        if embedding is not None:
            self._remembered[wanted] = embedding
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return embedding

    def learn(self, digests: Mapping[int, str]) -> None:
        """Take in tiles that were committed."""
        for number, digest in digests.items():
            self._learned.setdefault(bytes.fromhex(digest), number)

    def _number(self, digest: bytes) -> int | None:
        number = self._learned.get(digest)
        if number is not None:
            return number
        key = np.frombuffer(digest[:8], "<u8")[0]
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        for at in range(first, last):
            if self._digests[at].tobytes() == digest:
                return int(self._numbers[at])
        return None

    def _read(self, number: int) -> Stored | None:
        try:
            values, scales = self._reader.read_stored([number])
        except (CorruptionError, MissingTilesError, StorageError):
            return None  # then it is encoded; `verify` names what is damaged
        if scales is None:
            return np.asarray(values[0].numpy())
        return Quantised(values[0].numpy(), scales[0].numpy())
