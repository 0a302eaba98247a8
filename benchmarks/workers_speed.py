"""One worker beside two (or more) on one machine: how much faster the same tiles are encoded.

    python benchmarks/workers_speed.py --model vit_tiny --rounds 3

Each worker's encoder has one thread. What counts is the pace: the seconds that more tiles take beyond those of
fewer, so that starting processes is left out; the whole is told as well. The real commands, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from commands import figures

from embedcache.bench.ceiling import write_noise


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--checkpoint", default="random:0")
    parser.add_argument("--few", type=int, default=32, help="tiles of the short run")
    parser.add_argument("--many", type=int, default=160, help="tiles of the long run")
    parser.add_argument("--shard-tiles", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="where volume and stores lie; default: that of temporary files")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    paces: dict[int, list[float]] = {1: [], arguments.workers: []}
    wholes: dict[int, list[float]] = {1: [], arguments.workers: []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        volume = Path(folder) / "noise.zarr"
        write_noise(volume, arguments.many)
        for number in range(arguments.rounds):
            for workers in paces:
                seconds = {}
                for tiles in (arguments.few, arguments.many):
                    found = figures(
                        *("encode", "--volume", volume, "--model", arguments.model),
                        *("--checkpoint", arguments.checkpoint, "--compile", "off", "--threads", 1),
                        *("--shard-tiles", arguments.shard_tiles, "--z-range", f"0:{tiles}"),
                        *("--workers", workers, "--store", Path(folder) / f"{number}-{workers}-{tiles}.zarr"),
                    )
                    seconds[tiles] = found["seconds"]
                more = arguments.many - arguments.few
                paces[workers].append((seconds[arguments.many] - seconds[arguments.few]) / more)
                wholes[workers].append(seconds[arguments.many])
    one, several = (statistics.median(paces[workers]) for workers in paces)
    print(
        json.dumps(
            {
                "model": arguments.model,
                "workers": arguments.workers,
                "ratio": round(one / several, 3),
                "ratio_of_whole_runs": round(
                    statistics.median(wholes[1]) / statistics.median(wholes[arguments.workers]), 3
                ),
                "seconds_per_tile": {
                    workers: [round(pace, 4) for pace in found] for workers, found in paces.items()
                },
                "seconds_of_whole_runs": {
                    workers: [round(s, 2) for s in found] for workers, found in wholes.items()
                },
                "tiles": [arguments.few, arguments.many],
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
