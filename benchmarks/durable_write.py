"""What a durable commit costs beside the plain disk: MB/s of ``commit_shard`` and of raw write + fsync.

    python benchmarks/durable_write.py --folder /path/on/the/disk --rounds 7

A commit takes 64 float16 embeddings through CRC-32C, extremes, SHA-256 of the file, write, fsync, rename, fsync of
the folder, and the journal's record. Raw writes the same bytes into a new file, in pieces of 32 MiB with an fsync
after each. Both run in turn, on memory that the system has just got back. Prints JSON: medians in MB/s (10⁶
bytes), and their ratio.
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

from embedcache.bench.made_up_store import make_store
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store.layout import shard_path

SHARD_TILES = 64
RAW_PIECE = 32 << 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder of temporary files")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def make_embeddings() -> dict[int, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        tile: generator.standard_normal(EMBEDDING_SHAPE, np.float32).astype(np.float16)
        for tile in range(SHARD_TILES)
    }


def write_raw(path: Path, pieces: list[memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    written = 0
    for piece in pieces:
        os.write(descriptor, piece)
        written += len(piece)
        if written >= RAW_PIECE:
            os.fsync(descriptor)
            written = 0
    os.fsync(descriptor)
    os.close(descriptor)


def seconds(job: Callable[[], object]) -> float:
    os.sync()
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def main() -> None:
    options = parse()
    embeddings = make_embeddings()
    digests = {tile: f"{tile:064x}" for tile in embeddings}
    pieces = [array.reshape(-1).view(np.uint8).data for array in embeddings.values()]
    size = sum(len(piece) for piece in pieces)
    found: dict[str, list[float]] = {"raw": [], "commit": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(options.rounds + 1):
            raw = Path(folder) / f"{number}.raw"
            store = make_store(Path(folder) / f"{number}.zarr", SHARD_TILES)
            with store.writer() as writer:
                jobs = {
                    "raw": lambda raw=raw: write_raw(raw, pieces),
                    "commit": lambda writer=writer: writer.commit_shard(
                        0, embeddings=embeddings, input_digests=digests
                    ),
                }
                for name in sorted(jobs, reverse=bool(number % 2)):
                    took = seconds(jobs[name])
                    if number:  # the first round warms up
                        found[name].append(size / took / 1e6)
                    # of both, so that both find the same memory for the system's cache again
                    (raw if name == "raw" else shard_path(store.path, 0)).unlink()
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = [one / other for one, other in zip(found["commit"], found["raw"], strict=True)]
    print(
        json.dumps(
            {
                "bytes": size,
                "rounds": options.rounds,
                "commit_mb_per_second": round(medians["commit"]),
                "raw_mb_per_second": round(medians["raw"]),
                "ratio": round(medians["commit"] / medians["raw"], 3),
                "ratio_of_each_round": [round(ratio, 3) for ratio in ratios],
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
