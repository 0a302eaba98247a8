"""Turns tile numbers into checked embeddings, straight from the shard files into a batch tensor.

The reader keeps file descriptors and shard indexes open, reads with ``preadv`` and compares every embedding's
CRC-32C with the one stored behind it and with the one in the journal: flipped bits, torn writes and swapped
shards are all found. Quantised embeddings become floats in the batch, once their scales are the recorded ones
too. It takes no lock; threads may share it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import CorruptionError, InputError, MissingTilesError, command
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store.journal.newest import PATIENCE_SECONDS, NewestState
from embedcache.store.journal.state import COMMITTED, FAILED, SKIPPED, StoreState
from embedcache.store.shards.quantise import dequantise
from embedcache.store.shards.scales import CHANNELS, ShardScales, read_scales
from embedcache.store.shards.shard import INT8, ShardFile

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

OPEN_SHARDS = 128
"""Shard files that one reader keeps open at most."""

_PAUSE_SECONDS = 0.05

_CHANNELS_AT_ONCE = 8
"""Of 4,096 values each: 32,768, above which torch divides a copy among threads."""

_DTYPES = {"float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class _OpenShard:
    """A shard's files as they were when the record of this number held."""

    sequence: int
    chunks: ShardFile
    scales: ShardScales | None


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
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._newest = NewestState(store)

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
        tiles = self._committed(indices)
        buffer = self._buffer(1)  # small enough to stay in the processor's cache
        slot = _bytes(buffer)[0]
        for tile, row in zip(tiles, out, strict=True):
            _put(row, buffer[0], self._read_tile(tile, slot))
        return out

    def read_half(self, indices: Sequence[int] | npt.NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read embeddings as float16 (B, 256, 64, 64): as stored, or dequantised; otherwise as :meth:`read`."""
        if out is None:
            out = torch.empty((len(indices), *EMBEDDING_SHAPE), dtype=torch.float16)
        _check_out(out, len(indices), torch.float16)
        tiles = self._committed(indices)
        if self._store.form != INT8:
            for tile, slot in zip(tiles, _bytes(out), strict=True):
                self._read_tile(tile, slot)
            return out
        buffer = self._buffer(1)
        slot = _bytes(buffer)[0]
        for tile, row in zip(tiles, out, strict=True):
            scales = self._read_tile(tile, slot)
            assert scales is not None
            row.copy_(dequantise(buffer[0], torch.from_numpy(scales)))
        return out

    def read_stored(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Read embeddings as they are stored, to be moved to a device and made floats there.

        Parameters
        ----------
        indices : sequence of int
            Tile numbers.

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
        values = self._buffer(len(indices))
        tiles = self._committed(indices)
        scales = torch.empty((len(indices), CHANNELS)) if self._store.form == INT8 else None
        for row, (tile, slot) in enumerate(zip(tiles, _bytes(values), strict=True)):
            found = self._read_tile(tile, slot)
            if scales is not None and found is not None:
                scales[row] = torch.from_numpy(found)
        return values, scales

    def _buffer(self, count: int) -> Tensor:
        return torch.empty((count, *EMBEDDING_SHAPE), dtype=_DTYPES[self._store.form.dtype])

    def _committed(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
        tiles = [int(index) for index in indices]
        for tile in tiles:
            self._store.require_tile(tile)
            self._require_committed(tile, self._store.state)
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
        shard = tile // self._store.shard_tiles
        state, until = self._store.state, time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._read_once(tile, out, state)
            except CorruptionError as error:
                reason = error
            self._forget(shard)
            newer = self._news(shard, state, until)
            if newer is None:
                self._require_committed(tile, self._newest.state())  # or it was taken back meanwhile
                raise CorruptionError(
                    f"{self._store.path}, {self._store.describe(tile)}: {reason.message}.",
                    hint=f"`{command('repair', self._store.path)}` encodes it anew. Other tiles still read.",
                ) from reason
            if shard not in newer.intents:
                self._require_committed(tile, newer)
            state = newer

    def _read_once(self, tile: int, out: memoryview, state: StoreState) -> npt.NDArray[np.float32] | None:
        shard, slot = divmod(tile, self._store.shard_tiles)
        opened = self._shard(shard, state)
        crc = opened.chunks.read_into(slot, out)
        scale_crc = None if opened.scales is None else opened.scales.crc(slot)
        if (crc, scale_crc) not in state.accepted(tile):
            raise CorruptionError("its bytes differ from the recorded checksum")
        return None if opened.scales is None else opened.scales.rows[slot]

    def _news(self, shard: int, tried: StoreState, until: float) -> StoreState | None:
        """A state of the journal with which the shard may read although it did not with ``tried``, or ``None``."""
        newer = self._newest.state()
        if newer is tried and shard in newer.intents and time.monotonic() < until:
            time.sleep(_PAUSE_SECONDS)  # its writer is about to record it, or was killed
            return self._newest.state()
        pending = shard in newer.intents and newer is not tried
        return newer if pending or newer.shard_sequence[shard] != tried.shard_sequence[shard] else None

    def _shard(self, shard: int, state: StoreState) -> _OpenShard:
        """The open files of a shard; opened anew when the journal speaks of newer ones."""
        sequence, store = int(state.shard_sequence[shard]), self._store
        with self._lock:
            kept = self._open.get(shard)
            if kept is None or kept.sequence != sequence:
                scales = read_scales(store.path, shard, store.shard_tiles) if store.form == INT8 else None
                chunks = ShardFile(store.path, shard, store.form, store.shard_tiles)
                kept = self._open[shard] = _OpenShard(sequence, chunks, scales)
            self._open.move_to_end(shard)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)  # closed when the last thread has finished with it
            return kept

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._open.pop(shard, None)

    def close(self) -> None:
        """Let go of all files; reading opens them again."""
        with self._lock:
            self._open.clear()


def _put(row: Tensor, stored: Tensor, scales: npt.NDArray[np.float32] | None) -> None:
    """Make one stored embedding the floats of a row, a few channels at a time.

    torch does so little at once without its other threads. Waiting for these costs more than they bring, and ten
    times as much when the processor has other work.
    """
    parts = CHANNELS if row.device.type != "cpu" else _CHANNELS_AT_ONCE
    factors = None if scales is None else torch.from_numpy(scales).to(row.device)[:, None, None]
    for at, (floats, values) in enumerate(
        zip(torch.split(row, parts), torch.split(stored, parts), strict=True)
    ):
        floats.copy_(values)
        if factors is not None:
            floats.mul_(factors[at * parts : (at + 1) * parts])


def _bytes(embeddings: Tensor) -> list[memoryview]:
    """The bytes of each embedding of a batch, to read into."""
    rows = embeddings.view(torch.uint8).reshape(len(embeddings), -1).numpy()
    return [memoryview(row) for row in rows]


def _check_out(out: Tensor, count: int, dtype: torch.dtype) -> None:
    shape = (count, *EMBEDDING_SHAPE)
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise InputError(f"out has shape {tuple(out.shape)} and {out.dtype}; expected {shape} and {dtype}.")
    if dtype == torch.float16 and not (out.is_contiguous() and out.device.type == "cpu"):
        raise InputError("out must be a contiguous tensor in main memory.")
