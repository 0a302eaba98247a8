"""Turns the tiles of a run into memory in which their embeddings are kept, and finds it again for the next run.

Trainings of one process after another on the same tiles, as a sweep's, may share what is kept: see
:func:`shared_tiers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.geometry import EMBEDDING_SHAPE, EMBEDDING_VALUES
from embedcache.store.reading.resident import Residence, choose_residence
from embedcache.store.shards.scales import CHANNELS

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

_DTYPES = {"float16": torch.float16, "int8": torch.int8}

Numbers = npt.NDArray[np.int64]
Key = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Tier:
    """Memory for the embeddings of a run; without any where they are read from the disk each time.

    Parameters
    ----------
    residence : Residence
    rows : tuple of int64 (N,)
        Of each store, by tile number: its row here; −1: it has none.
    values : float16, int8 or float32 (n, 256, 64, 64)
        As stored; float32 where stores of several forms are read together.
    scales : float32 (n, 256) or None
        Of int8 stores.
    present : bool (n,)
        Which rows hold their embedding.
    """

    residence: Residence
    rows: tuple[Numbers, ...]
    values: Tensor
    scales: Tensor | None
    present: npt.NDArray[np.bool_]

    @classmethod
    def make(
        cls,
        stores: Sequence[EmbeddingStore],
        tiles: Sequence[Numbers],
        residence: Residence,
        device: torch.device,
    ) -> Tier:
        """An empty one, with room for these tiles of each store."""
        dtype = _dtype(stores)
        rows, count = tuple(np.full(len(store), -1, np.int64) for store in stores), 0
        for row, numbers in zip(rows, tiles, strict=True):
            if residence.where != "disk":
                row[numbers] = count + np.arange(len(numbers))
                count += len(numbers)
        home = device if residence.where == "gpu" else torch.device("cpu")
        values = torch.empty((count, *EMBEDDING_SHAPE), dtype=dtype, device=home)
        scales = torch.empty((count, CHANNELS), device=home) if dtype == torch.int8 else None
        return cls(residence, rows, values, scales, np.zeros(count, np.bool_))


def tier_for(
    stores: Sequence[EmbeddingStore],
    tiles: Sequence[Numbers],
    device: torch.device,
    *,
    wish: str = "auto",
    processes_here: int = 1,
) -> Tier:
    """The tier of a run: one that is kept for these tiles, else a new one where there is room.

    Parameters
    ----------
    stores : sequence of EmbeddingStore
    tiles : sequence of ndarray of int64
        Of each store, the numbers that will be asked for.
    device : torch.device
        Where they are wanted.
    wish, processes_here
        See :func:`~embedcache.store.reading.resident.choose_residence`.

    Raises
    ------
    ConfigError
        When the wish cannot be granted.
    """
    key = _key(stores, tiles, device)
    kept = None if _shared is None else _shared.get(key)
    if kept is not None and wish in ("auto", kept.residence.where):
        return kept
    dtype = _dtype(stores)
    row_bytes = EMBEDDING_VALUES * dtype.itemsize + (CHANNELS * 4 if dtype == torch.int8 else 0)
    needed = sum(map(len, tiles)) * row_bytes
    residence = choose_residence(needed, device, wish=wish, processes_here=processes_here)
    made = Tier.make(stores, tiles, residence, device)
    if _shared is not None and residence.where != "disk":
        _shared[key] = made
    return made


_shared: dict[Key, Tier] | None = None


@contextmanager
def shared_tiers() -> Iterator[None]:
    """What is kept inside is kept until the end, and found again by later runs on the same tiles."""
    global _shared
    before, _shared = _shared, {} if _shared is None else _shared
    try:
        yield
    finally:
        _shared = before


def _dtype(stores: Sequence[EmbeddingStore]) -> torch.dtype:
    """As which embeddings of these stores are kept: as stored, or as float32 when they are stored differently."""
    forms = {store.form.dtype for store in stores}
    return _DTYPES[forms.pop()] if len(forms) == 1 else torch.float32


def _key(stores: Sequence[EmbeddingStore], tiles: Sequence[Numbers], device: torch.device) -> Key:
    digests = [hashlib.sha256(numbers.tobytes()).hexdigest() for numbers in tiles]
    names = [(store.path, store.fingerprint) for store in stores]
    return str(device), *zip(names, digests, strict=True)
