"""A training step from the store beside the same step with the encoder inside it: seconds and peak memory.

    python benchmarks/encoder_in_the_loop.py --volume raw/ --labels mitochondria/ --model vit_b

The three ways run interleaved on the same tiles: ``cached`` reads embeddings from the store; ``stock`` runs
segment-anything's encoder eagerly in float32 before each step, as fine-tuning scripts do; ``ours`` runs
embedcache's encoder at the store's precision. Peak memory is measured in one process per way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import embedcache as ec
from embedcache.progress import Terminal
from embedcache.sam.encoder import Encoder, resolve_device
from embedcache.sam.weights import resolve_weights
from embedcache.train.dataset import TrainingItem
from embedcache.train.options import TrainOptions
from embedcache.train.steps import Stepper

WAYS = ("cached", "stock", "ours")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", help="default: made-up noise")
    parser.add_argument("--labels")
    parser.add_argument("--store", help="an existing store of the volume")
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--checkpoint", default="random:0")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--only", choices=WAYS, help="one way alone: for its peak memory")
    return parser.parse_args()


def made_up(folder: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2, 1024, 1024), dtype=np.uint8)
    np.save(folder / "volume.npy", pixels)
    np.save(folder / "labels.npy", np.where(pixels > 200, 255, 0).astype(np.uint8))
    return folder / "volume.npy", folder / "labels.npy"


def ways(arguments: argparse.Namespace, store: ec.EmbeddingStore) -> dict[str, Callable[[int], None]]:
    """One training step of each way; the argument is the step's number."""
    dataset = ec.EmbeddingDataset(store, labels=arguments.labels, prompts="none")
    volume, preprocess = ec.open_volume(store.provenance["source"]), store.spec.preprocess
    device = resolve_device("auto")
    steppers = {
        name: Stepper(
            store.decoder().to(device),
            TrainOptions(),
            "none",
            total_steps=1000,
            images_per_call=1 if device.type == "cpu" else arguments.batch_size,
            mixes_free=False,
        )
        for name in WAYS
    }
    encoders = {}
    if arguments.only != "cached":
        weights = resolve_weights(arguments.model, arguments.checkpoint)
        if arguments.only in (None, "stock"):
            encoders["stock"] = Encoder(
                weights, device=device, precision="fp32", numerics={"attention": "stock"}
            )
        if arguments.only in (None, "ours"):
            encoders["ours"] = Encoder(weights, device=device, precision=store.spec.precision)
        del weights

    def items(way: str, step: int) -> list[TrainingItem]:
        chosen = [(step * arguments.batch_size + k) % len(dataset) for k in range(arguments.batch_size)]
        if way == "cached":
            return [dataset[index] for index in chosen]
        built = []
        for index in chosen:
            number = int(dataset.tiles[index])
            pixels = preprocess.read(volume, store.tile(number))
            embedding = encoders[way](torch.from_numpy(preprocess.to_input(pixels)[None]))[0]
            built.append(dataset.item_with(number, 0, embedding))
        return built

    return {way: (lambda step, way=way: steppers[way].step(step, items(way, step))) for way in WAYS}


def measure(arguments: argparse.Namespace, store: ec.EmbeddingStore) -> dict[str, list[float]]:
    chosen = WAYS if arguments.only is None else (arguments.only,)
    steps = ways(arguments, store)
    seconds: dict[str, list[float]] = {way: [] for way in chosen}
    for step in range(arguments.rounds + 1):
        for way in chosen:
            begin = time.perf_counter()
            steps[way](step + 1)
            if step:  # the first round warms up
                seconds[way].append(time.perf_counter() - begin)
    return seconds


def own_peak_gib() -> float:
    """Peak resident memory; not ``ru_maxrss``, which a new process inherits from the one that started it."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 2**20


def peak_memory(arguments: argparse.Namespace, store: Path, way: str) -> float:
    """GiB of a process that does only this way."""
    command = [
        sys.executable,
        __file__,
        "--only",
        way,
        "--store",
        str(store),
        "--labels",
        str(arguments.labels),
    ]
    command += ["--model", arguments.model, "--checkpoint", arguments.checkpoint, "--rounds", "1"]
    command += ["--batch-size", str(arguments.batch_size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["peak_gib"])


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.volume is None and arguments.store is None:
            arguments.volume, arguments.labels = made_up(Path(folder))
        if arguments.store is None:
            store = ec.encode(
                arguments.volume,
                model=arguments.model,
                checkpoint=arguments.checkpoint,
                tile=arguments.tile,
                cache_dir=folder,
                progress=Terminal(),
            )
        else:
            store = ec.open_store(arguments.store)
        seconds = measure(arguments, store)
        if arguments.only:
            print(json.dumps({"peak_gib": own_peak_gib()}))
            return
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        print(f"{arguments.model}, batch {arguments.batch_size}, {arguments.rounds} interleaved rounds")
        print(f"{'way':8} {'s/step':>8} {'min':>7} {'max':>7} {'× cached':>9} {'peak GiB':>9}")
        for way, values in seconds.items():
            peak = peak_memory(arguments, store.path, way)
            ratio = medians[way] / medians["cached"]
            print(
                f"{way:8} {medians[way]:8.3f} {min(values):7.3f} {max(values):7.3f} {ratio:9.1f} {peak:9.2f}"
            )


if __name__ == "__main__":
    main()
