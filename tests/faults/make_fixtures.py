"""Writes ``tests/fixtures/store-format-*.tar.xz``: a store of each form that this version writes; small packed.

``python -m tests.faults.make_fixtures NAME``, once, when a form is finished: what was written stays. NAME begins
with the stored type (float16 where it does not) and may hold the words ``views`` and ``compacted``.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.journal import compaction
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.volume import Preprocess, TileGrid

from .elsewhere import FIXTURES

DECODER = {"prompt_encoder.a": torch.arange(4.0), "mask_decoder.b": torch.ones(2, 2)}
VOLUME = {"kind": "npy", "shape": [7, 32, 32], "dtype": "uint8"}
NUMERICS = {"attention": "own", "batch": 1}


def embedding(seed: int) -> Any:
    """Compresses well, and no other seed gives it."""
    row = np.random.default_rng(seed).standard_normal(64).astype(np.float16)
    return np.broadcast_to(row, EMBEDDING_SHAPE).copy()


def given(seed: int, dtype: str) -> Any:
    """An embedding as a store of this type takes it."""
    if dtype == "float16":
        return embedding(seed)
    values, scales = quantise(torch.from_numpy(embedding(seed))[None])
    return Quantised(values[0].numpy(), scales[0].numpy())


def write_store(path: Path, dtype: str, *, compacted: bool, views: bool = False) -> None:
    """Seven tiles in four shards: twins, failed, skipped and missing ones, two parts, a changed plane; views."""
    table = np.array([[plane, 0, 0, 32, 32] for plane in range(7)], np.int64)
    spec = EncodeSpec(
        "vit_tiny",
        "sha256:" + "0" * 64,
        "fp32",
        Preprocess("repeat", (0.0, 255.0)),
        VOLUME,
        TileGrid(32),
        dtype,
    )
    made: dict[str, Any] = {"decoder_state": DECODER, "provenance": {"source": "made up"}, "shard_tiles": 2}
    store = EmbeddingStore.create(path, spec=spec, table=table, **made)
    digest = "ab" * 32
    with store.writer() as writer:
        writer.decide_numerics(NUMERICS)
        writer.add_selection({}, np.ones(7, dtype=np.bool_))
        twin = given(0, dtype)
        writer.commit_shard(0, embeddings={0: twin, 1: twin}, input_digests={0: digest, 1: digest})
    for part in range(2):
        with store.writer(range(1 + part, 2 + part)) as writer:
            tile = 2 * (1 + part)
            writer.decide_numerics(NUMERICS)
            writer.commit_shard(
                1 + part, embeddings={tile: given(tile, dtype)}, input_digests={tile: f"{tile:064x}"}
            )
    with store.writer() as writer:
        writer.decide_numerics(NUMERICS)
        writer.commit_shard(1, embeddings={}, input_digests={}, failed={3: "not finite"})
        writer.commit_shard(2, embeddings={}, input_digests={5: digest}, skipped={5: "empty"})
        stale = np.zeros(7, dtype=np.bool_)
        stale[4] = True
        writer.change_source({**VOLUME, "pixels": "sha256:" + "1" * 64}, [], stale)
        writer.commit_shard(2, embeddings={4: given(40, dtype)}, input_digests={4: "40" * 32})
    store.add_certificate({"tiles": 1, "seed": 0})
    if views:
        with store.writer() as writer:
            writer.decide_numerics(NUMERICS)
            writer.add_views([4, 1])
            writer.add_selection({"views": "some"}, store.base | (store.view_of == 4))
            for tile in (7, 9, 14):  # two views of tile 0, one of tile 2
                shard = tile // store.shard_tiles
                digest = f"{tile:064x}"
                writer.commit_shard(
                    shard, embeddings={tile: given(tile, dtype)}, input_digests={tile: digest}
                )
    if compacted:
        compaction.COMPACT_BYTES = 0
        with store.writer() as writer:
            writer.decide_numerics(NUMERICS)


def main() -> None:
    """Write one archive."""
    name = sys.argv[1]
    target = FIXTURES / f"store-format-1-{name}.tar.xz"
    if target.exists():
        raise SystemExit(f"{target} is there; what was written once stays.")
    with tempfile.TemporaryDirectory() as folder:
        words = name.split("-")
        dtype = words[0] if words[0] in ("float16", "int8") else "float16"
        write_store(
            Path(folder) / "store.zarr", dtype, compacted="compacted" in words, views="views" in words
        )
        with tarfile.open(target, "w:xz", preset=9) as archive:
            archive.add(Path(folder) / "store.zarr", "store.zarr")
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
