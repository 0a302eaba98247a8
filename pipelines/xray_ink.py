"""Ink in X-ray surface volumes: each fragment in turn is found by a model that never saw it, and submitted.

    python -m pipelines.xray_ink fragments/1 fragments/2 fragments/3

A fragment is a folder with ``surface_volume/00.tif …``, ``inklabels.png`` and ``mask.png``. Nine of its 65 layers,
averaged by threes, are the three colours that the encoder sees (``--channels``); the window of the first fragment
is that of all, so that they share one embedding space. Figures are F0.5 inside ``mask.png``, as the ink contest
counts. The threshold of each fragment is the best one on that fragment: its score is what could be reached at
most, not what may be expected of a fragment without labels. Everything goes to ``xray_ink/``, with a submission of
run lengths. On a machine without a GPU and without SAM's weights:

    python -m pipelines.xray_ink fragments/1 fragments/2 --model vit_tiny --checkpoint random:0 --steps 200 \\
        --lr 1e-3
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import embedcache as ec
from pipelines import door


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the whole path and return the figures of each fragment while it is held out."""
    wish = parse(arguments)
    tell = ec.Terminal()
    names = [fragment.resolve().name for fragment in wish.fragments]

    # Stage one: once. The recipe of the first fragment, its window too, is that of all.
    stores: list[ec.EmbeddingStore] = []
    for name, fragment in zip(names, wish.fragments, strict=True):
        recipe = {"channels": wish.channels, **door.encoder(wish)} if not stores else {"like": stores[0].path}
        stores.append(
            ec.encode(
                fragment,
                store=wish.out / f"{name}.zarr",
                mask=fragment / "mask.png",
                skip_empty=True,
                progress=tell,
                **recipe,
            )
        )

    # Stage two: one run for each fragment, which that run never sees but to choose among its own states.
    rows, masks, runs = [], {}, []
    for index, name in enumerate(names):
        run = ec.train(
            stores,
            [fragment / "inklabels.png" for fragment in wish.fragments],
            supervision=tuple(fragment / "mask.png" for fragment in wish.fragments),
            val=f"store:#{index + 1}",  # always the number: fragments are called 1, 2, 3
            task="semantic",
            progress=tell,
            **door.training(wish, f"{wish.name}-without-{name}"),
        )
        rows.append({"fragment": name, **held_out(stores[index], wish.fragments[index], run, tell)})
        runs.append(run)
        masks[name] = wish.out / f"{wish.name}-{name}.csv"
        ec.predict(
            stores[index],
            run.checkpoint,
            masks[name],
            threshold=rows[-1]["threshold"],
            name=name,
            progress=tell,
        )

    figures = {"f05": statistics.fmean(row["f05"] for row in rows), "fragments": rows}
    figures["submission"] = str(ec.submit(list(masks.values()), wish.out / f"{wish.name}_submission.csv"))
    door.show(figures, ec.report(runs), wish)
    return figures


def held_out(store: ec.EmbeddingStore, fragment: Path, run: ec.Run, tell: ec.Terminal) -> dict[str, Any]:
    """Figures of the fragment that a run held out, at the threshold that is best on it by F0.5."""
    figures = ec.evaluate(
        store, fragment / "inklabels.png", checkpoint=run.checkpoint, thresholds=True, progress=tell
    ).to_dict()
    best = figures.pop("thresholds")["best"]
    return {**figures, **best, "threshold_chosen_on": "the fragment itself"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fragments", nargs="+", type=Path, help="folders with surface_volume/, two or more")
    parser.add_argument(
        "--channels",
        default="depth:26-28,30-32,34-36",
        help="layers that are averaged to red, green and blue",
    )
    door.options(parser, out="xray_ink", tile=512)
    wish = parser.parse_args(arguments)
    names = {fragment.resolve().name for fragment in wish.fragments}
    if len(names) < len(wish.fragments) or len(names) < 2:
        parser.error(
            f"two folders or more with names of their own are needed; found {', '.join(sorted(names))}"
        )
    return wish


if __name__ == "__main__":
    sys.exit(door.run(main))
