"""What freezing the encoder costs, and what wins it back: five trainings on one store, and one table.

    python -m pipelines.compare_heads qumran_ir_ink/images qumran_ir_ink/ink_masks --val 124_006,124_008,690_018

Compared are the decoder alone, prompt encoder and decoder, both with an adapter before them, the same with cached
views, and as reference all of SAM with its encoder fine-tuned end to end, which needs the pixels in every step.
All see the same tiles, labels, split and number of steps, and are measured without prompts (source ``free``) on
stitched planes that were held out. The threshold of each is chosen on the held-out tiles, for all alike. All of it
goes to ``compare_heads/``. On a machine without a GPU and without SAM's weights:

    python -m pipelines.compare_heads images masks --model vit_tiny --checkpoint random:0 --steps 200 --lr 1e-3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import embedcache as ec
from embedcache.bench.whole import fine_tune_whole
from pipelines import door

Row = dict[str, Any]

FIGURES = ("dice", "f05", "iou")

HEADS: dict[str, dict[str, Any]] = {
    "decoder": {"train": "decoder", "views": "off"},
    "prompt+decoder": {"views": "off"},
    "+ adapter": {"views": "off", "adapter": True},
    "+ views": {"views": "auto", "adapter": True},
}
"""What learns from the store; each but the first is the one before and something more."""

WHOLE = "whole SAM"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run all trainings that are not there yet, print the table, and return its rows."""
    wish = parse(arguments)
    tell = ec.Terminal()
    ec.check_names(wish.volume, val=wish.val)  # now, and not after all the encoding
    store = ec.encode(
        wish.volume,
        store=wish.out / "embeddings.zarr",
        model=wish.model,
        checkpoint=wish.checkpoint,
        tile=wish.tile,
        views=wish.views,
        progress=tell,
    )
    heads = [name for name in HEADS if name != "+ views" or wish.views != "none"]
    found = [row for head in heads for row in of_head(wish, store, head, tell)]
    if wish.whole_steps:
        found += list(of_whole(wish, store, tell))
    rows = [
        summed(name, [row for row in found if row["head"] == name])
        for name in dict.fromkeys(r["head"] for r in found)
    ]
    (wish.out / "table.json").write_text(json.dumps({"rows": rows, "runs": found}, indent=2) + "\n")
    print(table(rows))
    return rows


def of_head(
    wish: argparse.Namespace, store: ec.EmbeddingStore, head: str, tell: ec.Terminal
) -> Iterator[Row]:
    """Train one head with each seed, and measure it."""
    name = head.removeprefix("+ ").replace("+", "_") + (f"_{wish.views}" if head == "+ views" else "")
    for seed in range(wish.seeds):
        out = wish.out / f"{name}-seed{seed}"
        run = ec.train(
            store,
            wish.labels,
            out=out,
            resume=out.exists(),
            task="semantic",
            prompts="none",
            val=wish.val,
            supervision=wish.supervision,
            steps=wish.steps,
            batch_size=wish.batch_size,
            lr=wish.lr,
            seed=seed,
            patience=0,
            progress=tell,
            **HEADS[head],
        )
        figures = ec.evaluate(store, wish.labels, checkpoint=run.checkpoint, progress=tell).to_dict()
        yield {"head": head, "seed": seed, "steps": wish.steps, "seconds": run.summary["seconds"], **figures}


def of_whole(wish: argparse.Namespace, store: ec.EmbeddingStore, tell: ec.Terminal) -> Iterator[Row]:
    """Fine-tune all of SAM with each seed on the split of the first run; what is there already is read."""
    split = json.loads((wish.out / "decoder-seed0" / "split.json").read_text())
    for seed in range(wish.seeds):
        kept = wish.out / f"whole-seed{seed}-steps{wish.whole_steps}.json"
        if not kept.is_file():
            figures = fine_tune_whole(
                store,
                wish.labels,
                steps=wish.whole_steps,
                batch_size=wish.batch_size,
                lr=wish.lr,
                seed=seed,
                split=split,
                supervision=wish.supervision,
                progress=tell,
            )
            kept.write_text(json.dumps(figures, indent=2) + "\n")
        yield {"head": WHOLE, "seed": seed, **json.loads(kept.read_text())}


def summed(name: str, rows: Sequence[Row]) -> Row:
    """Means over seeds, and how far they lie apart."""
    row: Row = {"head": name, "seeds": len(rows), "steps": rows[0]["steps"]}
    for figure in FIGURES:
        values = [row[figure] for row in rows]
        row |= {figure: statistics.fmean(values), f"{figure}_spread": max(values) - min(values)}
    row["seconds"] = statistics.fmean(row["seconds"] for row in rows)
    row["prompt_source"] = rows[0]["prompt_source"]
    row["tiles"] = rows[0]["tiles"]
    baseline = rows[0].get("baseline")
    return row | ({} if baseline is None else {"untrained": baseline["dice"]})


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [["trained", "Dice (± spread)", "F0.5", "IoU", "steps", "seconds", "prompt source"]]
    for row in rows:
        dice = f"{row['dice']:.3f} (± {row['dice_spread'] / 2:.3f})"
        figures = [dice, f"{row['f05']:.3f}", f"{row['iou']:.3f}"]
        lines.append(
            [row["head"], *figures, str(row["steps"]), f"{row['seconds']:.0f}", row["prompt_source"]]
        )
    untrained = [row["untrained"] for row in rows if "untrained" in row]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, *(f"untrained decoder: Dice {value:.3f}" for value in untrained[:1])])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("volume", type=Path, help="what is encoded: images, a zarr, a TIFF")
    parser.add_argument("labels", type=Path, help="its labels, read as a mask")
    parser.add_argument("--supervision", type=Path, help="labels count only where this mask is positive")
    parser.add_argument("--out", type=Path, default=Path("compare_heads"), help="where everything goes")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--checkpoint", default="auto", help="auto, a file, or random:SEED")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--views", choices=["none", "flips", "d4"], default="d4")
    parser.add_argument("--val", default="auto", help="what is held out, as train takes it")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--whole-steps", type=int, help="steps of the reference; 0: none  [default: as --steps]"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=2)
    wish = parser.parse_args(arguments)
    wish.whole_steps = wish.steps if wish.whole_steps is None else wish.whole_steps
    return wish


if __name__ == "__main__":
    sys.exit(door.run(main))
