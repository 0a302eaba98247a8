"""The whole of `encode` beside the bare encoder loop on the same tiles: the same images, encoder and process.

    python benchmarks/whole_encode.py --model vit_tiny --tiles 64 --rounds 3 --threads 1

``bare`` calls the encoder on inputs that lie ready in memory and throws the results away. ``encode`` reads a
zarr volume of noise in chunks of 128³, prepares, encodes, and commits durably; its start-up (opening, weights,
making the store) is told apart. Both take turns in one process. Prints JSON: seconds of each round, and the ratio
encode / bare.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from embedcache.bench.ceiling import write_noise
from embedcache.bench.machine import peak_memory
from embedcache.encode import run_encode
from embedcache.encode.numerics import build_encoder
from embedcache.encode.options import options_from
from embedcache.encode.prepare import EncodeJob, prepare
from embedcache.encode.tile_reader import read_tile
from embedcache.geometry import Tile
from embedcache.progress import Silent
from embedcache.sam.encoder import Encoder

HELD = 16
"""Inputs that lie ready for the bare loop, over and over again; each takes 12 MiB."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--checkpoint", default="random:0")
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--folder", help="where volume and stores lie; default: that of temporary files")
    return parser.parse_args()


def ready_inputs(job: EncodeJob, encoder: Encoder) -> list[torch.Tensor]:
    """Batches for the bare loop, on the encoder's device."""
    tiles = [
        read_tile(job.volume, job.preprocess, number, Tile(*map(int, job.table[number])), empty=None)
        for number in range(min(HELD, len(job.table)))
    ]
    inputs = torch.stack([torch.from_numpy(tile.input) for tile in tiles if tile.input is not None])
    return [piece.to(encoder.device) for piece in torch.split(inputs, encoder.batch)]


def bare(encoder: Encoder, batches: list[torch.Tensor], tiles: int) -> float:
    begin, done = time.perf_counter(), 0
    while done < tiles:
        batch = batches[done // encoder.batch % len(batches)]
        encoder.on_device(batch)
        done += len(batch)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) * tiles / done


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rounds: dict[str, list[float]] = {"bare": [], "encode": [], "start_up": []}
    run: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        volume = Path(folder) / "noise.zarr"
        write_noise(volume, arguments.tiles)
        wishes = {"model": arguments.model, "checkpoint": arguments.checkpoint, "compile": arguments.compile}
        wishes |= {"threads": arguments.threads}
        encoder, batches = None, []
        for number in range(arguments.rounds + 1):
            options = options_from(volume, {**wishes, "store": Path(folder) / f"{number}.zarr"})
            result = run_encode(options, Silent())  # the first round warms up, and decides the numerics
            run = result.to_dict()
            if encoder is None:
                job = prepare(options, Silent())
                encoder = build_encoder(job, result.store.numerics, lambda line: None)
                batches = ready_inputs(job, encoder)
                bare(encoder, batches, encoder.batch)
                continue
            start = run["seconds_by_stage"]["prepare"]
            rounds["start_up"].append(start)
            rounds["encode"].append(run["seconds"] - start)
            rounds["bare"].append(bare(encoder, batches, arguments.tiles))
    ratios = [one / other for one, other in zip(rounds["encode"], rounds["bare"], strict=True)]
    print(
        json.dumps(
            {
                "model": arguments.model,
                "tiles": arguments.tiles,
                "ratio": round(statistics.median(ratios), 4),
                "ratio_of_each_round": [round(ratio, 4) for ratio in ratios],
                "seconds": {name: [round(value, 3) for value in values] for name, values in rounds.items()},
                "tiles_per_second": round(arguments.tiles / statistics.median(rounds["encode"]), 3),
                "last_run": {
                    name: run.get(name)
                    for name in ("seconds_by_stage", "waits", "bottleneck", "source_chunks_read")
                },
                "numerics": encoder.numerics if encoder else None,
                "peak_memory_bytes": peak_memory(torch.device("cpu")),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
