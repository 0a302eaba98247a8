"""Ink on infrared photographs of fragments: encode the photographs, train on some, find ink on all.

    python -m pipelines.infrared_ink qumran_ir_ink --val 124_006,124_008,690_018

The folder holds ``images/`` and ``ink_masks/`` with files of equal names; ``parchment_masks/`` is optional and
says where labels count. Carbon ink is darker than parchment in the infrared, so the figures stand beside those of
Otsu's threshold on the same held-out photographs. ``--video`` asks with a grid of points and trains with the loss
bce+iou; figures are without prompts all the same. Everything goes to ``infrared_ink/``: embeddings, run, masks,
report. On a machine without a GPU and without SAM's weights, a small variant that shows the path:

    python -m pipelines.infrared_ink qumran_ir_ink --model vit_tiny --checkpoint random:0 --steps 320 --lr 1e-3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import embedcache as ec
from pipelines import door
from pipelines.otsu import otsu_figures


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the whole path and return its figures on photographs that training never saw."""
    wish = parse(arguments)
    tell = ec.Terminal()
    images, ink, parchment = (wish.folder / name for name in ("images", "ink_masks", "parchment_masks"))
    ec.check_names(images, val=wish.val)  # a wrong name is told now, and not after all the encoding

    # Stage one: once. Another run of this script finds the embeddings and goes on at once.
    store = ec.encode(images, store=wish.out / "embeddings.zarr", progress=tell, **door.encoder(wish))

    # Stage two: as often as you like. Whole photographs are held out.
    run = ec.train(
        store,
        ink,
        val=wish.val,
        supervision=parchment if parchment.is_dir() else None,
        progress=tell,
        **door.training(wish),
        **({"prompts": "grid", "loss": "bce+iou"} if wish.video else {}),
    )

    figures = ec.evaluate(store, ink, checkpoint=run.checkpoint, progress=tell).to_dict()
    held_out = [number for _, numbers in run.split["val"] for number in numbers]
    otsu = otsu_figures(store, images, ink, parchment if parchment.is_dir() else None, held_out)
    figures |= {"otsu": otsu, "dice_above_otsu": figures["dice"] - otsu["dice"]}
    ec.predict(store, run.checkpoint, wish.out / f"{wish.name}_masks", progress=tell)
    door.show(figures, ec.report(run), wish)
    tell.say(compared(figures["dice"], otsu["dice"], untrained=figures["untrained"]))
    return figures


def compared(dice: float, otsu: float, *, untrained: bool) -> str:
    """Both figures in one sentence, whichever is ahead."""
    word = "above" if dice > otsu else "below"
    encoder = ", with an encoder of random weights" if untrained else ""
    return f"Dice {dice:.3f}{encoder}: {abs(dice - otsu):.3f} {word} Otsu's threshold ({otsu:.3f})."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds images/, ink_masks/ and perhaps parchment_masks/")
    parser.add_argument("--val", default="auto", help="photographs to hold out, by name, with commas between")
    parser.add_argument(
        "--video", action="store_true", help="as in the video: a grid of points, loss bce+iou"
    )
    door.options(parser, out="infrared_ink", tile=512)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(door.run(main))
