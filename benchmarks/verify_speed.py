"""Turns a made-up store into one figure: how fast ``verify`` reads, beside a plain read of the same files.

Run:  python benchmarks/verify_speed.py [--embeddings 512] [--rounds 5] [--folder DIR] [--dtype float16|int8]

Both read every shard file from its first to its last byte, in turns in one process: the plain read on one
thread, in pieces of 1 MiB into one buffer; ``verify`` as the command does it. The embeddings are noise, which no
checksum notices. Prints JSON: bytes per second and their ratio, warm (files in memory) and, where the system lets
go of them, cold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from embedcache.bench.made_up_store import fill, make_store
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import EmbeddingStore
from embedcache.store.care.verification import Scope
from embedcache.store.care.verify import verify

PIECE = 1 << 20


def noisy_store(folder: Path, count: int, dtype: str) -> EmbeddingStore:
    """A store of ``count`` noisy embeddings; one noise, another offset for each, so that all differ."""
    noise = torch.randn(EMBEDDING_SHAPE, generator=torch.Generator().manual_seed(0))
    return fill(make_store(folder / "store.zarr", count, dtype), count, lambda tile: noise + tile)


def plain_read(paths: list[Path]) -> float:
    """Seconds for reading the files on one thread, in pieces of 1 MiB."""
    buffer = bytearray(PIECE)
    begin = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        while os.readv(descriptor, [buffer]):
            pass
        os.close(descriptor)
    return time.perf_counter() - begin


def verified(store: EmbeddingStore, scope: Scope) -> float:
    begin = time.perf_counter()
    found = verify(store.path, scope)
    seconds = time.perf_counter() - begin
    assert found.exit_code == 0
    assert found.complete
    return seconds


def let_go(paths: list[Path]) -> bool:
    """Ask the system to forget the files; whether reading them is slower afterwards is for the figures to say."""
    try:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    except (AttributeError, OSError):
        return False
    return True


def compare(store: EmbeddingStore, paths: list[Path], rounds: int, scope: Scope, *, cold: bool) -> dict:
    size = sum(path.stat().st_size for path in paths)
    plain, checked = [], []
    for _ in range(rounds):
        if cold:
            let_go(paths)
        plain.append(plain_read(paths))
        if cold:
            let_go(paths)
        checked.append(verified(store, scope))
    return {
        "plain_mb_per_s": round(size / statistics.median(plain) / 1e6, 1),
        "verify_mb_per_s": round(size / statistics.median(checked) / 1e6, 1),
        "ratio": round(statistics.median(plain) / statistics.median(checked), 3),
        "ratios": [round(p / c, 3) for p, c in zip(plain, checked, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embeddings", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to put the store; default: a temporary folder")
    parser.add_argument("--dtype", choices=["float16", "int8"], default="float16")
    wishes = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="verify-speed-", dir=wishes.folder))
    try:
        store = noisy_store(folder, wishes.embeddings, wishes.dtype)
        paths = sorted(path for path in (store.path / "image_embeddings" / "c").rglob("0") if path.is_file())
        plain_read(paths)  # warm
        warm = compare(store, paths, wishes.rounds, Scope(), cold=False)
        digests = compare(store, paths, min(2, wishes.rounds), Scope(digests=True), cold=False)
        cold = compare(store, paths, min(3, wishes.rounds), Scope(), cold=True) if let_go(paths) else None
    finally:
        shutil.rmtree(folder)
    figures = {
        "ratio": warm["ratio"],
        "bytes": sum([wishes.embeddings * (2 if wishes.dtype == "float16" else 1) << 20]),
        "warm": warm,
        "warm_with_digests": digests,
        "cold": cold,
        "store_dtype": wishes.dtype,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load_before": os.getloadavg(),
    }
    json.dump(figures, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
