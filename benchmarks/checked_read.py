"""What checking every embedding costs: MB/s of the reader beside plain reads of the same bytes, interleaved.

    python benchmarks/checked_read.py --folder /path/on/the/disk --rounds 15

Batches of 32 shuffled embeddings, from the system's cache into one tensor that is kept. ``memmap`` copies float16
from a mapped .npy file and ``pread`` reads the shard's own chunks, both unchecked; ``half`` and ``float`` are
``read_half`` and ``read``, ``int8`` is ``read`` of a quantised store. Prints JSON: medians in MB/s (10⁶ bytes of
what is stored), and their ratio to ``memmap``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from made_up_store import fill, make_store

from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import EmbeddingStore
from embedcache.store.layout import shard_path
from embedcache.store.shards.shard import FLOAT16

SHARD_TILES = 64
TILES = 2 * SHARD_TILES
BATCH = 32


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder of temporary files")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def filled(path: Path, embeddings: np.ndarray, store_dtype: str) -> EmbeddingStore:
    return fill(make_store(path, TILES, store_dtype), TILES, lambda tile: torch.from_numpy(embeddings[tile]))


def main() -> None:
    options = parse()
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((TILES, *EMBEDDING_SHAPE), np.float32).astype(np.float16)
    half = torch.zeros(BATCH, *EMBEDDING_SHAPE, dtype=torch.float16)
    floats = torch.zeros(BATCH, *EMBEDDING_SHAPE)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        stored = filled(folder / "half.zarr", embeddings, "float16")
        reader, int8 = stored.reader(), filled(folder / "int8.zarr", embeddings, "int8").reader()
        np.save(folder / "plain.npy", embeddings)
        mapped = np.load(folder / "plain.npy", mmap_mode="r")
        del embeddings
        files = [
            os.open(shard_path(stored.path, shard), os.O_RDONLY) for shard in range(TILES // SHARD_TILES)
        ]
        rows = half.view(torch.uint8).reshape(BATCH, -1).numpy()

        def copy_mapped(tiles: list[int]) -> None:
            for row, tile in zip(half.numpy(), tiles, strict=True):
                np.copyto(row, mapped[tile])

        def read_chunks(tiles: list[int]) -> None:
            for row, tile in zip(rows, tiles, strict=True):
                shard, slot = divmod(tile, SHARD_TILES)
                os.preadv(files[shard], [row], slot * FLOAT16.chunk_bytes)

        ways: dict[str, Callable[[list[int]], object]] = {
            "memmap": copy_mapped,
            "pread": read_chunks,
            "half": lambda tiles: reader.read_half(tiles, half),
            "float": lambda tiles: reader.read(tiles, floats),
            "int8": lambda tiles: int8.read(tiles, floats),
        }
        for number in range(options.rounds + 1):
            batches = generator.permutation(TILES).reshape(-1, BATCH).tolist()
            for way, read in ways.items():
                begin = time.perf_counter()
                for batch in batches:
                    read(batch)
                if number:  # the first round warms up
                    size = TILES * (FLOAT16.payload_bytes >> (way == "int8"))
                    found.setdefault(way, []).append(size / (time.perf_counter() - begin) / 1e6)
        for descriptor in files:
            os.close(descriptor)
    medians = {way: statistics.median(values) for way, values in found.items()}
    print(
        json.dumps(
            {
                "mb_per_second": {way: round(value) for way, value in medians.items()},
                "ratio_to_memmap": {
                    way: round(value / medians["memmap"], 3) for way, value in medians.items()
                },
                "embeddings_per_second": {
                    way: round(value * 1e6 / (FLOAT16.payload_bytes >> (way == "int8")))
                    for way, value in medians.items()
                },
                "rounds": options.rounds,
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
