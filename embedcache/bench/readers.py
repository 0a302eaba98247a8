"""Turns a store and a plain file of the same embeddings into ways of reading a batch of them, ours and others'."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import EmbeddingReader, EmbeddingStore
from embedcache.store.layout import EMBEDDINGS, shard_path
from embedcache.store.reading.checks import Check
from embedcache.store.reading.sharing import Threads
from embedcache.store.shards.shard import FLOAT16

Read = Callable[[Sequence[Sequence[int]]], None]
"""Reads all batches of a pass, one after the other, into the same memory."""


@dataclass(frozen=True)
class Way:
    """One way of reading.

    Parameters
    ----------
    name, label : str
    reference : str
        The name of the one that it is compared with: as many threads, from the same place.
    build : callable
        Of a :class:`Place`.
    cold : bool
        Whether the system's cache is emptied before each pass.
    others : bool
        Whether it is another library's, which may be absent.
    """

    name: str
    label: str
    reference: str
    build: Callable[[Place], Read]
    cold: bool = False
    others: bool = False


@dataclass(frozen=True)
class Place:
    """What there is to read, and where to.

    Parameters
    ----------
    store : EmbeddingStore
        Of float16, whole.
    plain : Path
        The same embeddings in one ``.npy``.
    out : Tensor of float16, shape (B, 256, 64, 64)
    """

    store: EmbeddingStore
    plain: Path
    out: Tensor


def memmap(threads: int) -> Callable[[Place], Read]:
    """Copies out of a mapped ``.npy``: the yardstick of reading what the system has cached."""

    def build(place: Place) -> Read:
        mapped, rows, sharing = np.load(place.plain, mmap_mode="r"), place.out.numpy(), Threads(threads)

        def read(batches: Sequence[Sequence[int]]) -> None:
            for tiles in batches:

                def one(at: int, tiles: Sequence[int] = tiles) -> None:
                    np.copyto(rows[at], mapped[tiles[at]])

                sharing.each(len(tiles), one)

        return read

    return build


def preadv(place: Place) -> Read:
    """Plain reads of the shards' own bytes, which nobody checks."""
    store, rows = place.store, _bytes(place.out)

    def read(batches: Sequence[Sequence[int]]) -> None:
        files = [os.open(shard_path(store.path, shard), os.O_RDONLY) for shard in range(store.n_shards)]
        for tiles in batches:
            for at, tile in enumerate(tiles):
                shard, slot = divmod(tile, store.shard_tiles)
                os.preadv(files[shard], [rows[at]], slot * FLOAT16.chunk_bytes)
        for descriptor in files:
            os.close(descriptor)

    return read


def ours(check: Check, threads: int = 1, *, ahead: bool = False) -> Callable[[Place], Read]:
    """The reader; ``ahead`` tells the system of the next batch, as training does."""

    def build(place: Place) -> Read:
        def read(batches: Sequence[Sequence[int]]) -> None:
            for tiles, later in zip(batches, [*batches[1:], []], strict=True):
                if ahead:
                    reader.prefetch(later)
                reader.read_half(tiles, place.out[: len(tiles)])

        reader = EmbeddingReader(place.store, check=check, threads=threads)
        return read

    return build


def tensorstore(place: Place) -> Read:
    """The library of that name; checks."""
    import tensorstore as ts

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(place.store.path / EMBEDDINGS)},
        "context": {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}},
    }
    array: Any = ts.open(spec, open=True, read=True).result()
    rows = place.out.numpy()

    def read(batches: Sequence[Sequence[int]]) -> None:
        for tiles in batches:
            for at, tile in enumerate(tiles):
                ts.array(rows[at]).write(array[tile]).result()

    return read


def zarr_python(place: Place) -> Read:
    """The library of that name, one embedding at a time, which is its best; checks."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    array: Any = zarr.open_array(place.store.path / EMBEDDINGS, mode="r")
    buffer = default_buffer_prototype().nd_buffer
    rows = [buffer.from_ndarray_like(row) for row in place.out.numpy()]

    def read(batches: Sequence[Sequence[int]]) -> None:
        for tiles in batches:
            for at, tile in enumerate(tiles):
                array.get_basic_selection((tile,), out=rows[at])

    return read


def _bytes(out: Tensor) -> list[memoryview]:
    return [memoryview(row) for row in out.view(torch.uint8).flatten(1).numpy()]


WAYS = (
    Way("memmap", "memmap", "memmap", memmap(1)),
    Way("preadv", "plain preadv", "memmap", preadv),
    Way("ours", "ours, checked on every read", "memmap", ours("always")),
    Way("ours_once", "ours, checked once", "memmap", ours("once")),
    Way("ours_never", "ours, unchecked", "memmap", ours("never")),
    Way("tensorstore", "tensorstore, checked", "memmap", tensorstore, others=True),
    Way("zarr", "zarr-python, checked", "memmap", zarr_python, others=True),
    Way("memmap_2", "memmap, 2 threads", "memmap_2", memmap(2)),
    Way("ours_2", "ours, checked on every read, 2 threads", "memmap_2", ours("always", 2)),
    Way("cold_preadv", "plain preadv, cold", "cold_preadv", preadv, cold=True),
    Way("cold_ours", "ours, checked, cold", "cold_preadv", ours("always"), cold=True),
    Way(
        "cold_ours_ahead",
        "ours, checked, told ahead, cold",
        "cold_preadv",
        ours("always", ahead=True),
        cold=True,
    ),
)
"""In the order in which they take turns; those whose cold reads follow have files of their own."""


def memory_for(batch: int) -> Tensor:
    """Memory for a batch, touched once, so that no page of it is new to anybody."""
    return torch.zeros((batch, *EMBEDDING_SHAPE), dtype=torch.float16)
