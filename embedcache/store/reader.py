"""Turns tile numbers into checked embeddings, straight from the shard files into a batch tensor.

The reader keeps file descriptors and shard indexes open, reads with ``preadv`` and compares every embedding's
CRC-32C with the one stored behind it and with the one in the journal: flipped bits, torn writes and swapped
shards are all found. Quantised embeddings become floats in the batch, once their scales are the recorded ones
too. It takes no lock on the store; threads may share it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import CorruptionError, EmbedcacheError, InputError, MissingTilesError
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store.journal.newest import PATIENCE_SECONDS, NewestState
from embedcache.store.journal.state import COMMITTED, FAILED, SKIPPED, StoreState
from embedcache.store.reading.checks import Check, check_word
from embedcache.store.reading.opened import OpenShards
from embedcache.store.reading.rows import bytes_of_rows, check_out, put
from embedcache.store.reading.sharing import Threads
from embedcache.store.shards.scales import CHANNELS
from embedcache.store.shards.shard import INT8

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

_PAUSE_SECONDS = 0.05

_DTYPES = {"float16": torch.float16, "int8": torch.int8}


class EmbeddingReader:
    """Reads embeddings of one store.

    Parameters
    ----------
    store : EmbeddingStore
        Its snapshot says what is recorded; after ``store.refresh()`` the reader follows.
    open_shards : int, optional
        Shard files kept open at most; default: a share of 1,024, or of a quarter of what the system allows,
        with the other readers of this process.
    check : "always", "once" or "never"
        When an embedding is compared with its checksums: on every read, on its first in this process, or never.
        That it is recorded is asked always.
    threads : int
        Threads that share the embeddings of one call.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        *,
        open_shards: int | None = None,
        check: Check = "always",
        threads: int = 1,
    ) -> None:
        self._store = store
        self._check = check_word(check)
        self._again = partial(EmbeddingReader, open_shards=open_shards, check=self._check, threads=threads)
        self._open = OpenShards(store, limit=open_shards, once=self._check == "once")
        self._newest = NewestState(store)
        self._threads = Threads(threads)
        self._own = threading.local()

    def __reduce__(self) -> tuple[Callable[[EmbeddingStore], EmbeddingReader], tuple[EmbeddingStore]]:
        return self._again, (self._store,)

    def read(self, indices: Sequence[int] | npt.NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read embeddings as float32.

        Parameters
        ----------
        indices : sequence of int
            Tile numbers.
        out : Tensor of float32, shape (B, 256, 64, 64), optional
            Where to put them; made when not given.

        Returns
        -------
        Tensor of float32, shape (B, 256, 64, 64)

        Raises
        ------
        NoTileError
            When one of them is no number of the store, or one without a tile.
        MissingTilesError
            When one of them is not committed.
        CorruptionError
            When the bytes of one of them are not those recorded.
        StorageError
            When the system refuses to read a shard file.
        """
        return self._read_floats(indices, out, torch.float32)

    def read_half(self, indices: Sequence[int] | npt.NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read embeddings as float16 (B, 256, 64, 64): as stored, or dequantised; otherwise as :meth:`read`."""
        if self._store.form == INT8:
            return self._read_floats(indices, out, torch.float16)
        return self.read_stored(indices, None if out is None else (out, None))[0]

    def read_stored(
        self,
        indices: Sequence[int] | npt.NDArray[np.int64],
        out: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Read embeddings as they are stored, to be moved to a device and made floats there.

        Parameters
        ----------
        indices : sequence of int
            Tile numbers.
        out : pair of Tensor, optional
            Where to put values and scales; made when not given. They may lie in pinned memory.

        Returns
        -------
        values : Tensor of float16 or int8, shape (B, 256, 64, 64)
        scales : Tensor of float32, shape (B, 256), or None
            Of an int8 store: see :func:`~embedcache.store.shards.quantise.dequantise`.

        Raises
        ------
        NoTileError, MissingTilesError, CorruptionError, StorageError
            As :meth:`read`.
        """
        dtype, int8 = _DTYPES[self._store.form.dtype], self._store.form == INT8
        if out is None:
            values = torch.empty((len(indices), *EMBEDDING_SHAPE), dtype=dtype)
            out = values, torch.empty((len(indices), CHANNELS)) if int8 else None
        values, scales = out
        check_out(values, (len(indices), *EMBEDDING_SHAPE), dtype)
        if int8 != (scales is not None):
            raise InputError("scales belong to the embeddings of an int8 store, and to no others.")
        if scales is not None:
            check_out(scales, (len(indices), CHANNELS), torch.float32)
        tiles, rows = self._committed(indices), bytes_of_rows(values)

        def read(at: int) -> None:
            found = self._read_tile(tiles[at], rows[at])
            if scales is not None and found is not None:
                scales[at] = torch.from_numpy(found)

        self._threads.each(len(tiles), read)
        return values, scales

    def prefetch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Let the system begin to read embeddings that will be asked for soon; what is wrong is told then."""
        state = self._store.state
        for tile in indices:
            shard, slot = divmod(int(tile), self._store.shard_tiles)
            if 0 <= tile < len(state.flags) and state.flags[tile] == COMMITTED:
                with suppress(EmbedcacheError, OSError):
                    self._open.get(shard, state).chunks.will_need(slot)

    def _read_floats(
        self, indices: Sequence[int] | npt.NDArray[np.int64], out: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        shape = (len(indices), *EMBEDDING_SHAPE)
        if out is None:
            out = torch.empty(shape, dtype=dtype)
        check_out(out, shape, dtype)
        tiles, rows = self._committed(indices), list(out)

        def read(at: int) -> None:
            stored, slot = self._buffer()
            put(rows[at], stored, self._read_tile(tiles[at], slot))

        self._threads.each(len(tiles), read)
        return out

    def _buffer(self) -> tuple[Tensor, memoryview]:
        """Room for one stored embedding, of this thread alone: small enough to stay in the processor's cache."""
        kept: tuple[Tensor, memoryview] | None = getattr(self._own, "buffer", None)
        if kept is None:
            values = torch.empty((1, *EMBEDDING_SHAPE), dtype=_DTYPES[self._store.form.dtype])
            kept = self._own.buffer = (values[0], bytes_of_rows(values)[0])
        return kept

    def _committed(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
        tiles, state = [int(index) for index in indices], self._store.state
        for tile in tiles:
            if not (0 <= tile < len(state.flags) and state.flags[tile] == COMMITTED):
                self._store.require_tile(tile)
                self._require_committed(tile, state)
        return tiles

    def _require_committed(self, tile: int, state: StoreState) -> None:
        flag = int(state.flags[tile])
        if flag != COMMITTED:
            why = {SKIPPED: "was skipped", FAILED: "failed: " + state.failed.get(tile, "")}
            again = "Run the same encode command again; it encodes what is missing."
            whole = "It was left out on purpose, as empty; ask only for tiles that are committed."
            raise MissingTilesError(
                f"{self._store.path} does not hold {self._store.describe(tile)}: it "
                f"{why.get(flag, 'is not encoded yet')}.",
                hint=whole if flag == SKIPPED else again,
            )

    def _read_tile(self, tile: int, out: memoryview) -> npt.NDArray[np.float32] | None:
        """Read one tile into ``out``; returns its scales, of an int8 store.

        When its bytes are not the recorded ones, a writer may have replaced the shard since: the journal says so.
        While it announces a replacement that is not recorded yet, it is asked again and again.
        """
        try:
            return self._read_once(tile, out, self._store.state)
        except CorruptionError as error:
            return self._read_again(tile, out, error)

    def _read_again(
        self, tile: int, out: memoryview, reason: CorruptionError
    ) -> npt.NDArray[np.float32] | None:
        shard = tile // self._store.shard_tiles
        state, until = self._store.state, time.monotonic() + PATIENCE_SECONDS
        while True:
            self._open.forget(shard)
            newer = self._news(shard, state, until)
            if newer is None:
                self._require_committed(tile, self._newest.state())  # or it was taken back meanwhile
                raise CorruptionError(
                    f"{self._store.path}, {self._store.describe(tile)}: {reason.message}.",
                    hint=self._store.repair_hint(),
                ) from reason
            if shard not in newer.intents:
                self._require_committed(tile, newer)
            state = newer
            try:
                return self._read_once(tile, out, state)
            except CorruptionError as error:
                reason = error

    def _read_once(self, tile: int, out: memoryview, state: StoreState) -> npt.NDArray[np.float32] | None:
        shard, slot = divmod(tile, self._store.shard_tiles)
        opened = self._open.get(shard, state)
        check = self._check != "never" and not (opened.checked is not None and opened.checked[slot])
        crc = opened.read_into(slot, out, check=check)
        if check:
            scale_crc = None if opened.scales is None else opened.scales.crc(slot)
            if (crc, scale_crc) not in state.accepted(tile):
                raise CorruptionError("its bytes differ from the recorded checksum")
            if opened.checked is not None:
                opened.checked[slot] = 1
        return None if opened.scales is None else opened.scales.rows[slot]

    def _news(self, shard: int, tried: StoreState, until: float) -> StoreState | None:
        """A state of the journal with which the shard may read although it did not with ``tried``, or ``None``."""
        newer = self._newest.state()
        if newer is tried and shard in newer.intents and time.monotonic() < until:
            time.sleep(_PAUSE_SECONDS)  # its writer is about to record it, or was killed
            return self._newest.state()
        pending = shard in newer.intents and newer is not tried
        return newer if pending or newer.shard_sequence[shard] != tried.shard_sequence[shard] else None

    def close(self) -> None:
        """Let go of all files and threads; reading opens them again."""
        self._open.forget_all()
        self._threads.close()
