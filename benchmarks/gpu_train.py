"""Training steps on a GPU: the largest batch in 24 GB and in the whole card, and images per second by batch.

    python benchmarks/gpu_train.py --boxes 1 8 16

Embeddings are noise that lies on the host, as from a store. One process for each figure, so that none inherits
another's memory. ``--device cpu`` runs the speeds alone, to try the script out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from embedcache.bench.machine import machine
from embedcache.bench.step_process import Steps, StepSettings
from embedcache.sam import Decoder, Prompts
from embedcache.train.options import TrainOptions
from embedcache.train.questions.batch import Batch, StepData, TileKey
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.steps import Stepper

GB = 10**9
SMALL_CARD = 24 * GB


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 8, 16], help="boxes on each image")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="images")
    parser.add_argument("--turns", type=int, default=10, help="timed steps of each batch")
    parser.add_argument("--most", type=int, default=4096, help="no larger batch is tried")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--one", help="internal: what this process measures, as JSON")
    return parser.parse_args()


def steps_of(way: str, device: str, images: int, boxes: int) -> Steps:
    with tempfile.TemporaryDirectory() as folder:
        nowhere = str(Path(folder) / "none.npy")
        return Steps(StepSettings(way, "vit_tiny", "random:0", device, images, boxes, None, nowhere))


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def speed(way: str, device: str, images: int, boxes: int, turns: int) -> dict[str, object]:
    """Images per second; "memory" is why there are none."""
    try:
        steps = steps_of(way, device, images, boxes)
        for _ in range(2):
            steps.take()
        seconds = []
        for _ in range(turns):
            wait(device)
            begin = time.perf_counter()
            steps.take()
            wait(device)
            seconds.append(time.perf_counter() - begin)
    except torch.OutOfMemoryError:
        return {"images_per_second": None, "memory": "too small"}
    return {"images_per_second": images / statistics.median(seconds), "seconds": seconds}


def largest(device: str, boxes: int, limit: int | None, most: int) -> dict[str, object]:
    """The most images of which a step fits, by doubling and then by halves; under a limit in bytes."""
    if limit is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        if limit > total:
            return {"images": None, "memory": "the card has less"}
        torch.cuda.set_per_process_memory_fraction(limit / total, device)
    good, bad = 0, most + 1
    while good + 1 < bad:
        images = min(max(1, 2 * good), most) if bad > most else (good + bad) // 2
        if fits(device, images, boxes):
            good = images
        else:
            bad = images
    return {"images": good, "queries": good * boxes}


def fits(device: str, images: int, boxes: int) -> bool:
    torch.cuda.empty_cache()
    try:
        steps = steps_of("cached", device, images, boxes)
        steps.take()
        steps.take()  # from the second on there are the optimiser's moments
    except torch.OutOfMemoryError:
        return False
    return True


def waits(device: str) -> dict[str, object]:
    """Whether a step of ragged, iterative prompts asks the GPU for a number, which waits for all before it."""
    options = TrainOptions(prompts="iterative", rounds=5, ema=0.9, logger="none")
    place = torch.device(device)
    stepper = Stepper(Decoder.random(0).to(place), options, total_steps=100, ranks=Ranks(place))
    batches = [ragged_batch(place) for _ in range(2)]
    for step, mode in enumerate(("default", "error")):  # the first step warms up
        batch = batches[step]
        data = StepData(step, 0, 2, batch.asks, batch.keys, iter([batch]))
        torch.cuda.set_sync_debug_mode(mode)
        try:
            stepper.step(data)
        except RuntimeError as error:
            return {"waits": str(error)}
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"waits": False}


def ragged_batch(device: torch.device) -> Batch:
    """Two images with 3 and 5 objects, as many as are computed by images; some begin with a box, some points."""
    counts, rounds = (3, 5), 5
    queries = sum(counts)
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(
        counts,
        torch.full((queries, 1, 2), 300.0),
        torch.ones(queries, 1, dtype=torch.int32),
        torch.tensor([[10.0, 20, 300, 400]]).repeat(queries, 1),
        point_counts=torch.tensor([0] * 3 + [1] * 5),
        has_box=torch.tensor([True] * 3 + [False] * 5),
    )
    return Batch(
        keys=(TileKey(0, 0), TileKey(0, 1)),
        image_embeddings=torch.randn(2, 256, 64, 64, generator=generator).half(),
        targets=(torch.rand(queries, 256, 256, generator=generator) > 0.5).to(torch.uint8),
        weights=torch.ones(2, 256, 256, dtype=torch.uint8),
        prompts=prompts,
        draws=torch.rand(queries, rounds, generator=generator, dtype=torch.float64),
        speaks=torch.tensor([[True, True, False, True, False], [True, False, True, True, False]]),
        numbers=(0, 1),
    ).to(device)


def apart(arguments: argparse.Namespace, **task: object) -> dict[str, object]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--device", arguments.device, "--one", json.dumps(task)]
    command += ["--turns", str(arguments.turns), "--most", str(arguments.most)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_one(arguments: argparse.Namespace) -> dict[str, object]:
    task = json.loads(arguments.one)
    if task["what"] == "speed":
        return speed(task["way"], arguments.device, task["images"], task["boxes"], arguments.turns)
    if task["what"] == "waits":
        return waits(arguments.device)
    return largest(arguments.device, task["boxes"], task["limit"], arguments.most)


def main() -> None:
    arguments = parse()
    if arguments.one:
        print(json.dumps(measure_one(arguments)))
        return
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --device cpu tries the script out.")
    print(json.dumps(machine(torch.device(arguments.device))))
    if arguments.device.startswith("cuda"):
        print(json.dumps(apart(arguments, what="waits")), flush=True)
    for boxes in arguments.boxes:
        for images in arguments.batches:
            found = {
                way: apart(arguments, what="speed", way=way, images=images, boxes=boxes)
                for way in ("cached", "stock_cached")
            }
            print(json.dumps({"boxes": boxes, "images": images, **found}), flush=True)
        if arguments.device.startswith("cuda"):
            for name, limit in (("24 GB", SMALL_CARD), ("whole card", None)):
                found = apart(arguments, what="largest", boxes=boxes, limit=limit)
                print(json.dumps({"boxes": boxes, "card": name, **found}), flush=True)


if __name__ == "__main__":
    main()
