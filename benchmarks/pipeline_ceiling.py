"""What the pipeline does when its encoder costs nothing: tiles per second into a durable float16 store.

    python benchmarks/pipeline_ceiling.py --folder /path/on/the/disk --tiles 1024 --rounds 3

A volume of noise in zarr chunks of 128³ is made once; each round encodes it into a new store, in this process,
with a registered encoder that answers with a constant. Everything else is the real run: reading and decoding,
digests of the pixels, normalising, the cast to float16, the check for values that are not finite, checksums, the
digest of each shard, write, fsync, rename, journal; the next shard is encoded while one is written, as on a GPU.
Prints JSON: tiles per second of each round without its
preparation, seconds by stage, what the encoder waited for, source chunks read beside those that there are, and
CPU seconds per tile of all threads, which a busy machine distorts less than it does the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from embedcache.bench.ceiling import CONSTANT, Constant, encode_noise, write_noise
from embedcache.encode import overlapped
from embedcache.heap import keep_freed_memory
from embedcache.sam import register_encoder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="on which disk; default: that of temporary files")
    parser.add_argument("--tiles", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--store-dtype", default="float16")
    parser.add_argument(
        "--wait", action="store_true", help="let the encoder wait for each commit, as it does on a CPU"
    )
    return parser.parse_args()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def one_round(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    os.sync()
    begin = cpu_seconds()
    result, pace = encode_noise(
        folder, device="cpu", precision=options.precision, store_dtype=options.store_dtype
    )
    spent = cpu_seconds() - begin
    shutil.rmtree(folder / "store.zarr")
    figures = result.to_dict()
    names = ("seconds_by_stage", "waits", "bottleneck", "source_chunks_read", "tiles_encoded", "tiles_failed")
    return {
        "tiles_per_second": round(pace, 1),
        "cpu_ms_per_tile": round(1000 * spent / result.encoded, 2),
        **{name: figures[name] for name in names},
    }


def main() -> None:
    options = parse()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(options.threads)
    if not options.wait:
        overlapped.GOES_ON = ("cuda", "cpu")
    register_encoder(CONSTANT, Constant)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="embedcache-ceiling-") as name:
        folder = Path(name)
        distinct = write_noise(folder / "noise.zarr", options.tiles)
        rounds = [one_round(folder, options) for _ in range(options.rounds)]
    report = {
        "tiles": options.tiles,
        "source_chunks": distinct,
        "tiles_per_second": statistics.median(figures["tiles_per_second"] for figures in rounds),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "rounds": rounds,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
