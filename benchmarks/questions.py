"""What questions cost: milliseconds a tile for objects, prompts and targets, and for a round's error points.

    python benchmarks/questions.py --epochs 5

Eight tiles of 1024 px with 24 instances each, of which 16 are asked in 11 rounds, jitter on. In the first epoch
labels are read and objects found; later epochs find them in memory. Error points are drawn for 128 queries, on the
CPU and on a GPU where there is one. Prints JSON: medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from embedcache.bench.made_up_store import fill, make_store
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.train.asking.error_points import draw_error_points
from embedcache.train.questions.dataset import EmbeddingDataset

SIDE = 1024
TILES = 8
INSTANCES = 24
ASKED = 16
QUERIES = 128


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder of temporary files")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--side", type=int, default=SIDE, help="of a tile, in px")
    return parser.parse_args()


def instances(side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = np.zeros((TILES, side, side), np.uint16)
    y, x = np.mgrid[:side, :side]
    for plane in ids:
        for number in range(1, INSTANCES + 1):
            centre, radius = rng.uniform(0, side, 2), rng.uniform(side / 40, side / 8)
            plane[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = number
    return ids


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return round(statistics.median(found) * 1e3, 3)


def questions(folder: Path, side: int, epochs: int) -> dict[str, float]:
    np.save(folder / "labels.npy", instances(side))
    store, found = make_store(folder / "store.zarr", TILES, side=side), {}
    fill(store, TILES, lambda _: torch.zeros(EMBEDDING_SHAPE))
    for objects in ("ids", "components", "whole"):
        dataset = EmbeddingDataset(
            store, folder / "labels.npy", prompts="iterative", task="instances", objects=objects,
            max_objects=ASKED, rounds=11, jitter=True,
        )  # fmt: skip
        for name, first, last in (("first epoch", 0, 1), ("later epochs", 1, 1 + epochs)):
            places = iter([(tile, epoch) for epoch in range(first, last) for tile in range(TILES)])
            found[f"{objects}, {name}"] = milliseconds(
                lambda ask=dataset.question, at=places: ask(*next(at)), TILES * (last - first)
            )
    return found


def error_points() -> dict[str, float]:
    draw = torch.Generator().manual_seed(0)
    targets = (torch.rand(QUERIES, 256, 256, generator=draw) < 0.2).to(torch.uint8)
    answer = torch.randn(QUERIES, 256, 256, generator=draw)
    tensors = [
        answer,
        targets,
        torch.ones_like(targets),
        torch.rand(QUERIES, generator=draw, dtype=torch.float64),
    ]
    found = {"cpu": milliseconds(lambda: draw_error_points(*tensors), 15)}
    if torch.cuda.is_available():
        there = [tensor.to("cuda") for tensor in tensors]

        def on_gpu() -> None:
            draw_error_points(*there)
            torch.cuda.synchronize()

        on_gpu()
        found["cuda"] = milliseconds(on_gpu, 50)
    return found


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        asked = questions(Path(name), options.side, options.epochs)
    report = {"question": asked, f"error points of {QUERIES} queries": error_points()}
    print(json.dumps({"threads": torch.get_num_threads(), "milliseconds": report}, indent=2))


if __name__ == "__main__":
    main()
