"""Stores to be damaged, and ways to damage them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_samples import DIGEST, embedding, make_store, spec

from embedcache.files import append_line, crc32c
from embedcache.store import EmbeddingStore
from embedcache.store.journal.lines import encode_line
from embedcache.store.layout import shard_path
from embedcache.store.shards.quantise import Quantised, quantise


def filled(path: Path, n: int = 6, shard_tiles: int = 3, **changes: Any) -> EmbeddingStore:
    """A store all of whose tiles are committed, shard by shard."""
    store = make_store(path, n=n, shard_tiles=shard_tiles, **changes)
    with store.writer() as writer:
        for shard in range(-(-n // shard_tiles)):
            tiles = range(shard * shard_tiles, min((shard + 1) * shard_tiles, n))
            writer.commit_shard(
                shard,
                embeddings={tile: stored(store, tile) for tile in tiles},
                input_digests={tile: f"{tile:064x}" for tile in tiles},
            )
    return store


def stored(store: EmbeddingStore, seed: int) -> np.ndarray | Quantised:
    """An embedding in the form in which a store keeps it."""
    half = embedding(seed)
    if store.spec.store_dtype == "float16":
        return half
    values, scales = quantise(torch.from_numpy(half.copy())[None])
    return Quantised(values[0].numpy(), scales[0].numpy())


def filled_int8(path: Path, **changes: Any) -> EmbeddingStore:
    return filled(path, spec=spec(store_dtype="int8"), **changes)


def replace_tiles(store: EmbeddingStore, shard: int, seed: int) -> None:
    """Commit other embeddings for all tiles of a shard."""
    tiles = range(shard * store.shard_tiles, min((shard + 1) * store.shard_tiles, len(store)))
    with store.writer() as writer:
        writer.commit_shard(
            shard,
            embeddings={tile: stored(store, tile + seed) for tile in tiles},
            input_digests=dict.fromkeys(tiles, DIGEST),
        )


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, in place."""
    with path.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def forge(path: Path, offset: int) -> None:
    """Change bytes of a file so that their CRC-32C stays: by the checksum's own polynomial."""
    first_to_last = "1" + format(0x1EDC6F41, "032b")
    pattern = sum(int(bit) << place for place, bit in enumerate(first_to_last)).to_bytes(5, "little")
    data = bytearray(path.read_bytes())
    before = crc32c(data)
    for place, byte in enumerate(pattern):
        data[offset + place] ^= byte
    assert crc32c(data) == before
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    """Exchange two files."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def shard(store: EmbeddingStore | Path, number: int) -> Path:
    return shard_path(store if isinstance(store, Path) else store.path, number)


def append_record(store: EmbeddingStore, record: dict[str, Any]) -> None:
    """Append a record as a writer would."""
    line = encode_line({**record, "seq": store.read_state().sequence + 1})
    append_line(store.path / "journal" / "main.jsonl", line)


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, ending: str, error: int) -> None:
    """Let the system refuse to open files of the store whose path ends so."""
    real = os.open

    def refused(path, flags, mode=0o777, *, dir_fd=None):
        whole = str(path) if dir_fd is None else str(Path(f"/proc/self/fd/{dir_fd}").readlink() / path)
        if whole.endswith(ending):
            raise OSError(error, os.strerror(error))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refused)
