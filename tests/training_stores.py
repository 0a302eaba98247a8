"""Stores for the tests of training: made-up embeddings in which the labels can be seen, no encoder needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from embedcache.files import sha256_hex
from embedcache.geometry import Tile
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.train.questions.targets import area_average
from embedcache.volume import ImageRecord, Preprocess, TileGrid

DIGEST = "sha256:" + "0" * 64


def blob_labels(planes: int, height: int, width: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Discs of 255 on 0, elsewhere on each plane."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((planes, height, width), np.uint8)
    for plane in range(planes):
        for _ in range(3):
            cy, cx = rng.uniform(0.2, 0.8, 2) * (height, width)
            labels[plane][(y - cy) ** 2 + (x - cx) ** 2 < (min(height, width) / 6) ** 2] = 255
    return labels


def crowd_labels() -> npt.NDArray[np.uint16]:
    """Six planes of 1, 1, 2, 3, 4 and 5 objects: hardly two tiles are asked equally often."""
    labels = np.zeros((6, 64, 64), np.uint16)
    for plane in range(6):
        for number in range(max(1, plane)):
            top, left = 24 * (number // 3), 21 * (number % 3)
            labels[plane, top : top + 14, left : left + 12 + plane] = 10 * plane + number + 1
    return labels


def embedding_of(mask: npt.NDArray[np.bool_], tile: Tile, number: int) -> npt.NDArray[np.float16]:
    """Noise with the mask in its first channels."""
    noise = np.random.default_rng([7, number]).normal(0, 0.3, (256, 64, 64))
    seen = area_average(mask, tile).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    noise[:64] += np.where(np.arange(64)[:, None, None] % 2, 1.0, -1.0) * (2 * seen - 0.5)
    return noise.astype(np.float16)


def make_store(
    path: Path,
    labels: npt.NDArray[np.generic],
    *,
    tile: int = 64,
    overlap: int = 0,
    absent: Sequence[int] = (),
    wanted: Sequence[int] | None = None,
    encoder: str = DIGEST,
    channels: str = "repeat",
) -> EmbeddingStore:
    """A complete store of a (Z, Y, X) volume whose embeddings show ``labels > 0``."""
    grid = TileGrid(tile, overlap)
    table = grid.table_uniform(*labels.shape)
    volume = {"kind": "zarr", "shape": list(labels.shape), "made": path.name}
    return _fill(path, table, grid, volume, list(labels), (), absent, wanted, encoder, channels)


def labelled_folder(folder: Path, labels: npt.NDArray[np.generic]) -> Path:
    """A folder with labels, ``l.npy``, and a store that shows them, ``s.zarr``; torch is left with one thread."""
    torch.set_num_threads(1)
    make_store(folder / "s.zarr", labels)
    save_labels(folder / "l.npy", labels)
    return folder


def make_image_store(
    path: Path, labels: dict[str, npt.NDArray[np.generic]], *, tile: int = 64
) -> EmbeddingStore:
    """A complete store of an image collection."""
    grid = TileGrid(tile, 0)
    records = tuple(
        ImageRecord(name, *mask.shape, sha256_hex(name.encode())) for name, mask in labels.items()
    )
    table = grid.table_images([mask.shape for mask in labels.values()])
    volume = {"kind": "images", "channels": 1, "dtype": "uint8"}
    return _fill(path, table, grid, volume, list(labels.values()), records, (), None, DIGEST, "repeat")


def _fill(path, table, grid, volume, planes, records, absent, wanted, encoder, channels):  # type: ignore[no-untyped-def]
    store = EmbeddingStore.create(
        path,
        spec=EncodeSpec("vit_tiny", encoder, "fp32", Preprocess(channels), volume, grid),
        table=table,
        decoder_state=Decoder.random(0).state_dict(),
        provenance={"source": "/data/volume.zarr", "recipe": {"model": "vit_tiny", "checkpoint": "random:0"}},
        images=records,
    )
    chosen = table[:, 0] >= 0
    if wanted is not None:
        chosen = chosen & np.isin(np.arange(len(table)), wanted)
    with store.writer() as writer:
        writer.add_selection({"z_range": None}, chosen)
        for shard in range(store.n_shards):
            numbers = [
                n
                for n in range(shard * store.shard_tiles, min(len(table), (shard + 1) * store.shard_tiles))
                if chosen[n] and n not in absent
            ]
            if numbers:
                tiles = {n: store.tile(n) for n in numbers}
                writer.commit_shard(
                    shard,
                    embeddings={
                        n: embedding_of(planes[t.plane][t.slices] > 0, t, n) for n, t in tiles.items()
                    },
                    input_digests={n: f"{n:064x}" for n in numbers},
                )
    return store


def save_labels(path: Path, labels: npt.NDArray[np.generic]) -> Path:
    """A label volume as .npy."""
    np.save(path, labels)
    return path


def save_png_folder(folder: Path, labels: dict[str, npt.NDArray[np.uint8]]) -> Path:
    """A folder of label images by name."""
    folder.mkdir(parents=True)
    for name, mask in labels.items():
        Image.fromarray(mask).save(folder / name)
    return folder
