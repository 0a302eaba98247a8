"""Turns tiles of equal pixels (air, masked regions) into copies of one embedding, encoded once.

What a tile's embedding is follows from its pixels alone, within a store. So a tile whose pixel digest is
recorded already is not encoded again: its embedding is read from the store, checked, and committed under the new
number as well. One whose pixels are being encoded just now waits for that embedding. The bytes are those that
encoding would give.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from enum import Enum

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, MissingTilesError, StorageError
from embedcache.store import EmbeddingStore
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.shard import Stored

LEARNED = 65_536
"""Tiles of this run that are kept in a dictionary before they are sorted in."""

REMEMBERED = 8
"""Embeddings kept in memory: of a volume's air there is one."""


class Fate(Enum):
    """What becomes of a tile whose embedding is not there yet."""

    ENCODE = "its pixels are new"
    WAIT = "its pixels are being encoded, under another number"


class Twins:
    """The embeddings that a store holds or will hold, by the pixels they were made of.

    One thread asks for the fate of tiles in their order; the thread that encodes says what came out; commits are
    told by :meth:`learn`.

    Parameters
    ----------
    store : EmbeddingStore
        Open for writing; what is committed is added by :meth:`learn`.

    Attributes
    ----------
    writing : Lock
        Held while the store is read, and to be held by whoever changes it.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self._reader, self.writing = store.reader(), threading.Lock()
        self._remembered: OrderedDict[bytes, Stored] = OrderedDict()
        self._learned: dict[bytes, int] = {}
        self._begun: set[bytes] = set()
        self._made: dict[bytes, Stored | str] = {}
        self._asked: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        numbers, digests = store.recorded_inputs()
        if (
            len(store.state.numerics) > 1
        ):  # made under several numerics: equal pixels need not give equal bits
            numbers, digests = numbers[:0], digests[:0]
        self._sort(numbers, digests)

    def fate(self, digest: str) -> Stored | str | Fate:
        """The embedding of these pixels, the reason why they have none, or what is to be done.

        After ``Fate.ENCODE`` :meth:`made` is called for them, after each ``Fate.WAIT`` :meth:`twin_of`.
        """
        wanted = bytes.fromhex(digest)
        with self._lock:
            made = self._made.get(wanted)
            if made is not None:
                return made
            if wanted in self._begun:
                self._asked[wanted] += 1
                return Fate.WAIT
        # Now it is committed or new: what is being encoded becomes committed in one step, and only here it begins.
        known = self._find(wanted)
        if known is not None:
            return known
        with self._lock:
            self._begun.add(wanted)
        return Fate.ENCODE

    def made(self, digest: str, embedding: Stored | str) -> None:
        """Take in what pixels that were to be encoded became: an embedding, or the reason why there is none."""
        with self._lock:
            self._made[bytes.fromhex(digest)] = embedding

    def twin_of(self, digest: str) -> Stored | str:
        """What pixels became for which a tile had to wait; they have been made by now."""
        wanted = bytes.fromhex(digest)
        with self._lock:
            found = self._made[wanted]
            self._asked[wanted] -= 1
            self._let_go(wanted)
        return found

    def learn(self, digests: Mapping[int, str]) -> None:
        """Take in tiles that were committed: their embeddings need no longer be held."""
        with self._lock:
            for number, digest in digests.items():
                self._learned[bytes.fromhex(digest)] = number
                self._let_go(bytes.fromhex(digest))
            if len(self._learned) > max(LEARNED, len(self._numbers) // 16) and not self._asked:
                self._fold()

    def forget(self) -> None:
        """Copy nothing that was made so far: what comes is made under other numerics."""
        with self._lock:
            self._remembered.clear()
            self._learned.clear()
            self._begun = {
                digest for digest in self._begun if self._asked[digest] or digest not in self._made
            }
            self._made = {digest: made for digest, made in self._made.items() if self._asked[digest]}
            self._sort(self._numbers[:0], self._digests[:0])

    def _sort(self, numbers: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> None:
        keys = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers, self._digests = keys[order], numbers[order], digests[order]

    def _fold(self) -> None:
        """Put what was learned beside what was recorded: 48 bytes a tile instead of some 200."""
        numbers = np.fromiter(self._learned.values(), np.int64, len(self._learned))
        digests = np.frombuffer(b"".join(self._learned), np.uint8).reshape(len(numbers), -1)
        self._sort(np.concatenate([self._numbers, numbers]), np.concatenate([self._digests, digests]))
        self._learned.clear()

    def _let_go(self, digest: bytes) -> None:
        if self._asked[digest] > 0:
            return
        del self._asked[digest]
        if digest in self._learned:
            self._made.pop(digest, None)
            self._begun.discard(digest)

    def _find(self, wanted: bytes) -> Stored | None:
        """The stored embedding; None when there is none, or what is stored of it is damaged."""
        with self._lock:
            known = self._remembered.get(wanted)
            if known is not None:
                self._remembered.move_to_end(wanted)
                return known
            number = self._number(wanted)
        embedding = None if number is None else self._read(number)
        if embedding is not None:
            with self._lock:
                self._remembered[wanted] = embedding
                if len(self._remembered) > REMEMBERED:
                    self._remembered.popitem(last=False)
        return embedding

    def _number(self, digest: bytes) -> int | None:
        number = self._learned.get(digest)
        if number is not None:
            return number
        key = np.frombuffer(digest[:8], "<u8")[0]
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        for at in reversed(range(first, last)):  # the newest first: an older one may be damaged
            if self._digests[at].tobytes() == digest:
                return int(self._numbers[at])
        return None

    def _read(self, number: int) -> Stored | None:
        try:
            with self.writing:
                values, scales = self._reader.read_stored([number])
        except (CorruptionError, MissingTilesError, StorageError):
            return None  # then it is encoded; `verify` names what is damaged
        if scales is None:
            return np.asarray(values[0].numpy())
        return Quantised(values[0].numpy(), scales[0].numpy())
