"""Turns tile numbers into checked embeddings, straight from the shard files into a batch tensor.

The reader keeps file descriptors and shard indexes open, reads with ``preadv`` and compares every embedding's
CRC-32C with the one stored behind it and with the one in the journal: flipped bits, torn writes and swapped
shards are all found. It takes no lock; threads may share it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import CorruptionError, InputError, MissingTilesError
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import layout
from embedcache.store.shard import PAYLOAD_BYTES, ShardFile
from embedcache.store.state import COMMITTED, FAILED, SKIPPED

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

OPEN_SHARDS = 128
"""Shard files that one reader keeps open at most."""


class EmbeddingReader:
    """Reads embeddings of one store.

    Parameters
    ----------
    store : EmbeddingStore
        Its snapshot says what is recorded; after ``store.refresh()`` the reader follows.
    open_shards : int, optional
        Shard files kept open at most.
    """

    def __init__(self, store: EmbeddingStore, *, open_shards: int = OPEN_SHARDS) -> None:
        self._store = store
        self._limit = max(1, open_shards)
        self._open: OrderedDict[int, tuple[int, ShardFile]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[EmbeddingStore], EmbeddingReader], tuple[EmbeddingStore]]:
        return EmbeddingReader, (self._store,)

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
        if out is None:
            out = torch.empty((len(indices), *EMBEDDING_SHAPE), dtype=torch.float32)
        _check_out(out, len(indices), torch.float32)
        half = torch.empty(
            EMBEDDING_SHAPE, dtype=torch.float16
        )  # small enough to stay in the processor's cache
        slot = half.view(torch.uint8).reshape(PAYLOAD_BYTES).numpy().data
        for tile, row in zip([self._committed(int(index)) for index in indices], out, strict=True):
            self._read_tile(tile, slot)
            row.copy_(half)
        return out

    def read_half(self, indices: Sequence[int] | npt.NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read embeddings as stored, float16 (B, 256, 64, 64); otherwise as :meth:`read`."""
        if out is None:
            out = torch.empty((len(indices), *EMBEDDING_SHAPE), dtype=torch.float16)
        _check_out(out, len(indices), torch.float16)
        slots = out.view(torch.uint8).reshape(len(indices), PAYLOAD_BYTES).numpy()
        tiles = [self._committed(int(index)) for index in indices]
        for tile, slot in zip(tiles, slots, strict=True):
            self._read_tile(tile, memoryview(slot))
        return out

    def _committed(self, tile: int) -> int:
        state = self._store.state
        self._store.require_tile(tile)
        flag = int(state.flags[tile])
        if flag != COMMITTED:
            why = {SKIPPED: "was skipped", FAILED: "failed: " + state.failed.get(tile, "")}
            again = "Run the same encode command again; it encodes what is missing."
            whole = "It was left out on purpose, as empty; ask only for tiles that are committed."
            raise MissingTilesError(
                f"{self._store.path} does not hold {self._store.describe(tile)}: it "
                f"{why.get(flag, 'was not encoded yet')}.",
                hint=whole if flag == SKIPPED else again,
            )
        return tile

    def _read_tile(self, tile: int, out: memoryview) -> None:
        """Read one tile; when its bytes are not the recorded ones, look once whether a newer record has them."""
        try:
            found = self._read_once(tile, out)
            if found in self._store.state.accepted_crcs(tile):
                return
            reason = "its bytes differ from the recorded checksum"
        except CorruptionError as error:
            reason = error.message
        shard = tile // self._store.shard_tiles
        with self._lock:
            self._open.pop(shard, None)
        newer = self._store.read_state()
        if newer.shard_sequence[shard] != self._store.state.shard_sequence[shard] or shard in newer.intents:
            try:
                if self._read_once(tile, out) in newer.accepted_crcs(tile):
                    return
            except CorruptionError as error:
                reason = error.message
        raise CorruptionError(
            f"{self._store.path}, {self._store.describe(tile)}: {reason}.",
            hint="Restore its shard from a copy, or encode again into another --store. Other tiles still read.",
        )

    def _read_once(self, tile: int, out: memoryview) -> int:
        shard, slot = divmod(tile, self._store.shard_tiles)
        return self._shard(shard).read_into(slot, out)

    def _shard(self, shard: int) -> ShardFile:
        """The open shard file; opened anew when the journal speaks of a newer one."""
        sequence = int(self._store.state.shard_sequence[shard])
        with self._lock:
            kept = self._open.get(shard)
            if kept is not None and kept[0] == sequence:
                self._open.move_to_end(shard)
                return kept[1]
            opened = ShardFile(layout.shard_path(self._store.path, shard), self._store.shard_tiles)
            self._open[shard] = (sequence, opened)
            self._open.move_to_end(shard)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)  # closed when the last thread has finished with it
            return opened

    def close(self) -> None:
        """Let go of all files; reading opens them again."""
        with self._lock:
            self._open.clear()


def _check_out(out: Tensor, count: int, dtype: torch.dtype) -> None:
    shape = (count, *EMBEDDING_SHAPE)
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise InputError(f"out has shape {tuple(out.shape)} and {out.dtype}; expected {shape} and {dtype}.")
    if dtype == torch.float16 and not (out.is_contiguous() and out.device.type == "cpu"):
        raise InputError("out must be a contiguous tensor in main memory.")
