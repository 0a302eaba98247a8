"""Turns a number of embeddings into a store of them with a made-up spec, for benchmarks.

The pixels are said to be squares, one plane for each embedding; nobody reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.shards.shard import Stored
from embedcache.volume import Preprocess, TileGrid

SIDE = 32


def make_store(
    path: Path,
    count: int,
    store_dtype: str = "float16",
    *,
    side: int = SIDE,
    decoder: Mapping[str, torch.Tensor] | None = None,
) -> EmbeddingStore:
    """An empty store with room for ``count`` embeddings of tiles of ``side`` px, 64 to a shard.

    Its decoder is a made-up tensor, unless a state is given: only what trains from it needs a real one.
    """
    spec = EncodeSpec(
        model_type="vit_b",
        encoder_digest="sha256:" + "0" * 64,
        precision="fp32",
        preprocess=Preprocess("repeat", (0.0, 255.0)),
        volume={"kind": "npy", "shape": [count, side, side], "dtype": "uint8"},
        grid=TileGrid(side),
        store_dtype=store_dtype,
    )
    return EmbeddingStore.create(
        path,
        spec=spec,
        table=TileGrid(side).table_uniform(count, side, side),
        decoder_state=decoder or {"mask_decoder.a": torch.zeros(1)},
        provenance={},
    )


def fill(store: EmbeddingStore, count: int, embedding: Callable[[int], torch.Tensor]) -> EmbeddingStore:
    """Commit the first ``count`` tiles; ``embedding`` gives that of a tile, (256, 64, 64)."""
    with store.writer() as writer:
        for shard in range(-(-count // store.shard_tiles)):
            tiles = range(shard * store.shard_tiles, min((shard + 1) * store.shard_tiles, count))
            writer.commit_shard(
                shard,
                embeddings={tile: _as_stored(embedding(tile), store.spec.store_dtype) for tile in tiles},
                input_digests={tile: f"{tile:064x}" for tile in tiles},
            )
    return store


def _as_stored(embedding: torch.Tensor, store_dtype: str) -> Stored:
    if store_dtype == "float16":
        return embedding.half().numpy()
    values, scales = quantise(embedding[None])
    return Quantised(values[0].numpy(), scales[0].numpy())
