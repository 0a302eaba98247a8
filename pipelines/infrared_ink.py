"""Ink on infrared photographs of fragments: encode the photographs, train on some, find ink on all.

    python -m pipelines.infrared_ink qumran_ir_ink --val 124_006,124_008,690_018

The folder holds ``images/`` and ``ink_masks/`` with files of equal names; ``parchment_masks/`` is optional and
says where labels count. Everything goes to ``infrared_ink/``: embeddings, run, masks, report. On a machine
without a GPU and without SAM's weights, a small variant that shows the path:

    python -m pipelines.infrared_ink qumran_ir_ink --model vit_tiny --checkpoint random:0 --steps 320 --lr 1e-3
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
    """Run the whole path and return its figures on photographs that training never saw."""
    wish = parse(arguments)
    tell = ec.Terminal()
    parchment = wish.folder / "parchment_masks"

    # Stage one: once. Another run of this script finds the embeddings and goes on at once.
    store = ec.encode(
        wish.folder / "images",
        store=wish.out / "embeddings.zarr",
        model=wish.model,
        checkpoint=wish.checkpoint,
        tile=wish.tile,
        progress=tell,
    )

    # Stage two: as often as you like. Whole photographs are held out.
    # A run of that name is gone on with, or found finished.
    run = ec.train(
        store,
        wish.folder / "ink_masks",
        out=wish.out / wish.name,
        resume=(wish.out / wish.name).exists(),
        val=wish.val,
        steps=wish.steps,
        lr=wish.lr,
        supervision=parchment if parchment.is_dir() else None,
        progress=tell,
    )

    figures = ec.evaluate(
        store, wish.folder / "ink_masks", checkpoint=run.checkpoint, progress=tell
    ).to_dict()
    ec.predict(store, run.checkpoint, wish.out / f"{wish.name}_masks", progress=tell)
    page = ec.report(run)
    print(json.dumps(figures, indent=2))
    print(f"report: {page}")
    return figures


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds images/, ink_masks/ and perhaps parchment_masks/")
    parser.add_argument("--out", type=Path, default=Path("infrared_ink"), help="where everything goes")
    parser.add_argument("--name", default="run", help="name of this training; choose another for another one")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--checkpoint", default="auto", help="auto, a file, or random:SEED")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--val", default="auto", help="photographs to hold out, by name, with commas between")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-4)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(door.run(main))
