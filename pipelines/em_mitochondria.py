"""Mitochondria in electron-microscope sections: train on the first sections, hold the last ones out.

    python -m pipelines.em_mitochondria stack1/raw stack1/mitochondria --hold-out 4

Raw sections and labels are folders of images with equal names or in the same order (or a TIFF stack, a zarr, an
``.npy``). Neighbouring sections look alike, so a gap is left between those that train and those that are held
out. Everything goes to ``em_mitochondria/``. On a machine without a GPU and without SAM's weights:

    python -m pipelines.em_mitochondria stack1/raw stack1/mitochondria --model vit_tiny --checkpoint random:0 \\
        --steps 200 --lr 1e-3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import embedcache as ec
from pipelines import door


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Run the whole path and return its figures on sections that training never saw."""
    wish = parse(arguments)
    tell = ec.Terminal()

    # Stage one: once. Another run of this script finds the embeddings and goes on at once.
    store = ec.encode(
        wish.raw,
        store=wish.out / "embeddings.zarr",
        model=wish.model,
        checkpoint=wish.checkpoint,
        tile=wish.tile,
        progress=tell,
    )

    # Stage two: as often as you like. A share instead of numbers, as a share leaves a gap.
    # A run of that name is gone on with, or found finished.
    sections = int(store.table[:, 0].max()) + 1
    run = ec.train(
        store,
        wish.labels,
        out=wish.out / wish.name,
        resume=(wish.out / wish.name).exists(),
        task="semantic",
        val=f"{wish.hold_out / sections:.6f}",
        steps=wish.steps,
        lr=wish.lr,
        progress=tell,
    )

    figures = ec.evaluate(store, wish.labels, checkpoint=run.checkpoint, progress=tell).to_dict()
    ec.predict(store, run.checkpoint, wish.out / f"{wish.name}_masks.tif", progress=tell)
    page = ec.report(run)
    print(json.dumps(figures, indent=2))
    print(f"report: {page}")
    return figures


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("raw", type=Path, help="the sections")
    parser.add_argument("labels", type=Path, help="their labels")
    parser.add_argument("--hold-out", type=int, default=4, help="how many of the last sections")
    parser.add_argument("--out", type=Path, default=Path("em_mitochondria"), help="where everything goes")
    parser.add_argument("--name", default="run", help="name of this training; choose another for another one")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--checkpoint", default="auto", help="auto, a file, or random:SEED")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-4)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(door.run(main))
