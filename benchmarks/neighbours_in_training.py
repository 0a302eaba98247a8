"""Turns a labelled stack into the figure by which a leaking split flatters: neighbours train, or strangers.

    python benchmarks/neighbours_in_training.py raw mitochondria --model vit_tiny --checkpoint random:0

The same sections are held out twice. Once their direct neighbours train, as a split at random has it; once as many
sections that lie far away. Everything else is equal: store, steps, seeds, number of sections.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path

import embedcache as ec

HELD, NEAR, FAR = (15, 16), (11, 12, 13, 14, 17, 18, 19), (0, 1, 2, 3, 4, 5, 6)
"""Numbers of sections."""


def main() -> None:
    """Train with neighbours and with strangers, and print what each reaches on the same held-out sections."""
    wish = parse()
    tell = ec.Terminal()
    store = ec.encode(
        wish.raw,
        store=wish.out / "embeddings.zarr",
        model=wish.model,
        checkpoint=wish.checkpoint,
        progress=tell,
    )
    for name, sections in (("near", NEAR), ("far", FAR)):
        labels = labels_of(wish.labels, (*sections, *HELD), wish.out / f"labels-{name}")
        dice = [train(store, labels, wish, name, seed) for seed in range(wish.seeds)]
        spread = (max(dice) - min(dice)) / 2
        print(f"{name}: Dice {statistics.fmean(dice):.3f} (± {spread:.3f}), {len(sections)} sections train")


def train(store: ec.EmbeddingStore, labels: Path, wish: argparse.Namespace, name: str, seed: int) -> float:
    """Dice, without prompts, on the held-out sections."""
    out = wish.out / f"{name}-{seed}"
    run = ec.train(
        store,
        labels,
        out=out,
        resume=out.exists(),
        task="semantic",
        prompts="none",
        val=f"{HELD[0]}:{HELD[-1] + 1}",
        steps=wish.steps,
        batch_size=2,
        lr=1e-3,
        seed=seed,
        patience=0,
        progress=ec.Terminal(),
    )
    return float(ec.evaluate(store, labels, checkpoint=run.checkpoint).to_dict()["dice"])


def labels_of(labels: Path, sections: tuple[int, ...], into: Path) -> Path:
    """A folder with the label files of these sections alone: unlabelled sections take no part."""
    into.mkdir(parents=True, exist_ok=True)
    files = sorted(labels.iterdir())
    for section in sections:
        shutil.copy(files[section], into / f"{section:03d}{files[section].suffix}")
    return into


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("raw", type=Path, help="twenty sections")
    parser.add_argument("labels", type=Path, help="a folder of as many label images")
    parser.add_argument("--out", type=Path, default=Path("neighbours"), help="where everything goes")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--checkpoint", default="auto")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
