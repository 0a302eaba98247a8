"""Small stores for tests: real specs, made-up embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.journal.file import JournalFile, Place
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.shards.shard import INT8
from embedcache.volume.preprocess import Preprocess
from embedcache.volume.tiles import TileGrid
from embedcache.volume.volume import ImageRecord

DIGEST = "ab" * 32
IMAGES = [ImageRecord(f"{name}.jpg", 32, 40, name * 64) for name in "abcd"]
DECODER = {"prompt_encoder.a": torch.arange(4.0), "mask_decoder.b": torch.ones(2, 2)}


def spec(**changes: Any) -> EncodeSpec:
    values: dict[str, Any] = {
        "model_type": "vit_tiny",
        "encoder_digest": "sha256:" + "0" * 64,
        "precision": "fp32",
        "preprocess": Preprocess("repeat", (0.0, 255.0)),
        "volume": {"kind": "npy", "shape": [5, 32, 32], "dtype": "uint8"},
        "grid": TileGrid(32),
    }
    return EncodeSpec(**(values | changes))


def table(n: int) -> np.ndarray:
    rows = np.tile(np.array([0, 0, 0, 32, 32], np.int64), (n, 1))
    rows[:, 0] = np.arange(n)
    return rows


@cache
def embedding(seed: int) -> np.ndarray:
    """A cheap embedding that no other seed gives."""
    row = np.random.default_rng(seed).standard_normal(4096).astype(np.float16)
    values = np.broadcast_to(row.reshape(64, 64), EMBEDDING_SHAPE).copy()
    values[0] = seed % 7
    values.flags.writeable = False
    return values


@cache
def quantised(seed: int) -> Quantised:
    """The same embedding in eight bits a value."""
    values, scales = quantise(torch.tensor(embedding(seed))[None])
    return Quantised(values[0].numpy(), scales[0].numpy())


def stored(store: EmbeddingStore, seed: int) -> np.ndarray | Quantised:
    """The embedding as the store keeps it."""
    return quantised(seed) if store.form == INT8 else embedding(seed)


def make_store(path: Path, n: int = 5, shard_tiles: int = 2, **changes: Any) -> EmbeddingStore:
    values: dict[str, Any] = {
        "spec": spec(),
        "table": table(n),
        "decoder_state": DECODER,
        "provenance": {"source": "made up"},
        "shard_tiles": shard_tiles,
    }
    return EmbeddingStore.create(path, **(values | changes))


def commit(store: EmbeddingStore, *tiles: int, seed: int = 0, **reasons: Any) -> None:
    """Commit tiles of one shard with the embeddings of their numbers."""
    with store.writer() as writer:
        shard = (list(tiles) or [t for part in reasons.values() for t in part])[0] // store.shard_tiles
        writer.commit_shard(
            shard,
            embeddings={tile: stored(store, tile + seed) for tile in tiles},
            input_digests=dict.fromkeys(tiles, DIGEST),
            **reasons,
        )


def file_bytes(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def journal_records(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The records of one journal file."""
    return JournalFile(path.parent, path).records()
