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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import embedcache as ec
from pipelines import door


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the whole path and return its figures on sections that training never saw."""
    wish = parse(arguments)
    tell = ec.Terminal()

    # Stage one: once. Another run of this script finds the embeddings and goes on at once.
    store = ec.encode(wish.raw, store=wish.out / "embeddings.zarr", progress=tell, **door.encoder(wish))

    # Stage two: as often as you like. A share instead of numbers, as a share leaves a gap.
    sections = int(store.table[:, 0].max()) + 1
    run = ec.train(
        store,
        wish.labels,
        task="semantic",
        val=f"{wish.hold_out / sections:.6f}",
        progress=tell,
        **door.training(wish),
    )

    figures = ec.evaluate(store, wish.labels, checkpoint=run.checkpoint, progress=tell).to_dict()
    ec.predict(store, run.checkpoint, wish.out / f"{wish.name}_masks.tif", progress=tell)
    door.show(figures, ec.report(run), wish)
    return figures


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("raw", type=Path, help="the sections")
    parser.add_argument("labels", type=Path, help="their labels")
    parser.add_argument("--hold-out", type=int, default=4, help="how many of the last sections")
    door.options(parser, out="em_mitochondria", tile=1024)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(door.run(main))
