"""Turns places in several stores into embeddings on a device: from memory where they are kept, else from files.

Threads fill the rows of a *slot*, memory for the embeddings of one step, while the step before computes. What is
resident is read once; afterwards its rows come from the tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store.reader import EmbeddingReader
from embedcache.store.reading.checks import Check
from embedcache.store.reading.rows import put
from embedcache.store.reading.tier import Tier
from embedcache.store.shards.quantise import dequantise
from embedcache.store.shards.scales import CHANNELS

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore


@dataclass(frozen=True, eq=False)
class Slot:
    """Memory for the stored embeddings of one step.

    Parameters
    ----------
    values : float16, int8 or float32 (n, 256, 64, 64)
        As stored; float32 where stores of several forms are read together. Pinned for a GPU.
    scales : float32 (n, 256) or None
        Of int8 stores.
    tiers : int64 (n,)
        Row of the tier in which each is kept; −1: in none.
    """

    values: Tensor
    scales: Tensor | None
    tiers: npt.NDArray[np.int64]


class Gather:
    """Fetches embeddings of several stores; threads may share it.

    Parameters
    ----------
    stores : sequence of EmbeddingStore
        Of one embedding space; their forms may differ.
    tier : Tier
        Where embeddings are kept after their first read.
    device : torch.device
        Where they are wanted.
    check : "always", "once" or "never"
        See :class:`~embedcache.store.reader.EmbeddingReader`; of a read from a file.
    """

    def __init__(
        self,
        stores: Sequence[EmbeddingStore],
        tier: Tier,
        device: torch.device,
        *,
        check: Check = "always",
    ) -> None:
        self._readers = [EmbeddingReader(store, check=check) for store in stores]
        self._device, self._tier = device, tier
        self._where, self._dtype = tier.residence.where, tier.values.dtype

    def slot(self, count: int) -> Slot:
        """Room for the embeddings of a step, to be used again and again."""
        pinned = self._device.type == "cuda"
        values = torch.empty((count, *EMBEDDING_SHAPE), dtype=self._dtype, pin_memory=pinned)
        scales = torch.empty((count, CHANNELS), pin_memory=pinned) if self._dtype == torch.int8 else None
        return Slot(values, scales, np.full(count, -1, np.int64))

    def fill(self, slot: Slot, at: int, store: int, number: int) -> None:
        """Bring one embedding to row ``at`` of a slot, unless it is on the GPU already.

        Raises
        ------
        NoTileError, MissingTilesError, CorruptionError, StorageError
            As :meth:`EmbeddingReader.read <embedcache.store.reader.EmbeddingReader.read>`.
        """
        row = slot.tiers[at] = self._tier.rows[store][number]
        kept = row >= 0 and self._tier.present[row]
        if kept and self._where == "gpu":
            return
        if kept:
            _copy(slot.values[at], self._tier.values[row])
            if slot.scales is not None and self._tier.scales is not None:
                _copy(slot.scales[at], self._tier.scales[row])
            return
        self._read(slot, at, store, number)
        if row >= 0 and self._where == "ram":
            _copy(self._tier.values[row], slot.values[at])
            if slot.scales is not None and self._tier.scales is not None:
                _copy(self._tier.scales[row], slot.scales[at])
            self._tier.present[row] = True

    def _read(self, slot: Slot, at: int, store: int, number: int) -> None:
        values = slot.values[at : at + 1]
        if self._dtype == torch.float32:
            self._readers[store].read([number], values)
        else:
            scales = None if slot.scales is None else slot.scales[at : at + 1]
            self._readers[store].read_stored([number], (values, scales))

    def embeddings(self, slot: Slot, first: int, last: int) -> Tensor:
        """Rows of a full slot on the device, float16 or float32 (n, 256, 64, 64), on the current stream.

        By one thread at a time. On a CPU float16 rows are the slot's own memory.
        """
        if self._where == "gpu":
            values, scales = self._from_tier(slot, first, last)
        else:
            values = slot.values[first:last].to(self._device, non_blocking=True)
            scales = _part(slot.scales, slice(first, last), self._device)
        return values if scales is None else _floats(values, scales)

    def _from_tier(self, slot: Slot, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """The rows out of the tier; those that are new there cross to the device now, and stay."""
        tiers = slot.tiers[first:last]
        for at in np.flatnonzero(~self._tier.present[tiers]):
            row = int(tiers[at])
            self._tier.values[row].copy_(slot.values[first + at], non_blocking=True)
            if slot.scales is not None and self._tier.scales is not None:
                self._tier.scales[row].copy_(slot.scales[first + at], non_blocking=True)
            self._tier.present[row] = True
        rows = torch.from_numpy(tiers).to(self._device, non_blocking=True)
        return self._tier.values[rows], None if self._tier.scales is None else self._tier.scales[rows]

    def prefetch(self, places: Sequence[tuple[int, int]]) -> None:
        """Let the system begin to read embeddings, (store, number) each, that are not kept."""
        for store, number in places:
            row = self._tier.rows[store][number]
            if row < 0 or not self._tier.present[row]:
                self._readers[store].prefetch([number])

    def close(self) -> None:
        """Let go of all files."""
        for reader in self._readers:
            reader.close()


def _copy(to: Tensor, source: Tensor) -> None:
    """In main memory, by this thread alone: torch would wake others, which the training step is using."""
    np.copyto(to.numpy(), source.numpy())


def _floats(values: Tensor, scales: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return dequantise(values, scales)
    floats = torch.empty(values.shape)
    for row, stored, factors in zip(floats, values, scales, strict=True):
        put(row, stored, factors.numpy())
    return floats


def _part(scales: Tensor | None, rows: slice, device: torch.device) -> Tensor | None:
    return None if scales is None else scales[rows].to(device, non_blocking=True)
