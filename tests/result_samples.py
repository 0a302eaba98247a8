"""Small stores with a real decoder and made-up embeddings, and checkpoints that fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.train.checkpoint import Checkpoint
from embedcache.volume import ImageRecord, Preprocess, TileGrid


def spec(tile: int, overlap: int = 0, **changes: Any) -> EncodeSpec:
    values: dict[str, Any] = {
        "model_type": "vit_tiny",
        "encoder_digest": "sha256:" + "0" * 64,
        "precision": "fp32",
        "preprocess": Preprocess("repeat", (0.0, 255.0)),
        "volume": {"kind": "npy", "shape": [4, 96, 96], "dtype": "uint8"},
        "grid": TileGrid(tile, overlap),
    }
    return EncodeSpec(**(values | changes))


def embedding(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(EMBEDDING_SHAPE).astype(np.float16)


def make_store(
    path: Path,
    sizes: Sequence[tuple[int, int]],
    *,
    tile: int = 64,
    overlap: int = 0,
    uniform: bool = True,
    only: Sequence[int] | None = None,
    source: str = "made up",
    told: Mapping[str, Any] | None = None,
    **changes: Any,
) -> EmbeddingStore:
    """A store of planes of the given sizes; all tiles committed, or ``only`` these numbers.

    ``told`` is added to its provenance.
    """
    rule = TileGrid(tile, overlap)
    table = rule.table(sizes, uniform=uniform)
    images = [
        ImageRecord(name=f"image_{number}.png", height=height, width=width, sha256=f"{number:064d}")
        for number, (height, width) in enumerate(sizes)
    ]
    store = EmbeddingStore.create(
        path,
        spec=spec(tile, overlap, **changes),
        table=table,
        decoder_state=Decoder.random(0).state_dict(),
        provenance={"source": source, "untrained": True, "recipe": {"model": "vit_tiny", "tile": tile}}
        | dict(told or {}),
        images=() if uniform else images,
    )
    wanted = table[:, 0] >= 0
    chosen = np.flatnonzero(wanted) if only is None else np.asarray(only)
    with store.writer() as writer:
        writer.add_selection({}, wanted)
        for shard in sorted(set((chosen // store.shard_tiles).tolist())):
            members = [int(number) for number in chosen if number // store.shard_tiles == shard]
            writer.commit_shard(
                shard,
                embeddings={number: embedding(number) for number in members},
                input_digests=dict.fromkeys(members, "ab" * 32),
                skipped={},
                failed={},
                seconds={},
            )
    store.refresh()
    return store


def make_checkpoint(path: Path, store: EmbeddingStore, **changes: Any) -> Checkpoint:
    """A checkpoint of another random decoder; the first half of the tiles trained, the rest validates."""
    numbers = np.flatnonzero(store.committed).tolist()
    half = len(numbers) // 2
    values: dict[str, Any] = {
        "state": Decoder.random(1).state_dict(),
        "embedding_space": store.embedding_space,
        "recipe": {"model": "vit_tiny", "tile": 64},
        "task": "semantic",
        "prompts": "none",
        "objects": "whole",
        "threshold": 0.0,
        "split": {
            "kind": "planes",
            "rule": "the second half is held out",
            "train": [[0, numbers[:half]]],
            "val": [[0, numbers[half:]]],
            "stores": [store.fingerprint],
        },
        "stores": (str(store.path),),
        "labels": ("made up",),
        "step": 3,
        "metric": "dice",
        "value": 0.5,
        "prompt_source": "free",
        "untrained": True,
    }
    checkpoint = Checkpoint(path=None, **(values | changes))
    return Checkpoint.load(checkpoint.save(path))


def add_views(store: EmbeddingStore, views: Sequence[int] = (2,)) -> EmbeddingStore:
    """Commit further views of all tiles, whose embeddings say something else than those of the tiles."""
    with store.writer() as writer:
        writer.add_views(views)
        wanted = store.table[:, 0] >= 0
        writer.add_selection({}, wanted)
        chosen = np.flatnonzero(wanted & ~store.base)
        for shard in sorted(set((chosen // store.shard_tiles).tolist())):
            members = [int(number) for number in chosen if number // store.shard_tiles == shard]
            writer.commit_shard(
                shard,
                embeddings={number: embedding(number + 1000) for number in members},
                input_digests=dict.fromkeys(members, "cd" * 32),
            )
    store.refresh()
    return store
