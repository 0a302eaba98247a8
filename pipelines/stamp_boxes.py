"""Stamps on document pages: boxes that somebody drew are the prompts, in training and afterwards.

    python -m pipelines.stamp_boxes pages boxes.csv masks --val page_5,page_6

``pages`` is a folder of images; ``boxes.csv`` has the columns image,x0,y0,x1,y1, or is COCO JSON; ``masks`` holds
a mask for each page, of the page's name, in which the stamps are white. Whole pages are held out; their figures,
without and with training, and pictures of them go to ``stamp_boxes/`` with everything else. Boxes come from a file
and not from the masks, so that figures are ``free``, as long as nobody drew them after the masks of the held-out
pages. On a machine without a GPU and without SAM's weights:

    python -m pipelines.stamp_boxes pages boxes.csv masks --model vit_tiny --checkpoint random:0 --tile 256 \\
        --steps 200 --lr 1e-3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

import embedcache as ec
from pipelines import door

FIGURES = ("dice", "iou", "precision", "recall")
GREEN = (0, 200, 60)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the whole path and return the figures on held-out pages."""
    wish = parse(arguments)
    tell = ec.Terminal()
    ec.check_names(wish.pages, val=wish.val, boxes=wish.boxes)  # now, and not after all the encoding

    # Stage one: once. Another run of this script finds the embeddings and goes on at once.
    store = ec.encode(wish.pages, store=wish.out / "embeddings.zarr", progress=tell, **door.encoder(wish))

    # Stage two: as often as you like. Each box asks for what it holds; tiles without one take no part.
    run = ec.train(
        store,
        wish.labels,
        prompts="boxes",
        boxes=wish.boxes,
        task="semantic",
        val=wish.val,
        progress=tell,
        **door.training(wish),
    )

    figures = ec.evaluate(store, wish.labels, checkpoint=run.checkpoint, progress=tell).to_dict()
    trained = ec.Checkpoint.load(run.checkpoint)
    untrained = replace(trained, state=store.decoder().state_dict(), adapter=False)
    before = ec.predict(
        store,
        ec.Checkpoint.load(untrained.save(wish.out / "untrained.safetensors")),
        threshold=figures["baseline"]["threshold"],
        boxes=wish.boxes,
    )
    after = ec.predict(
        store, run.checkpoint, wish.out / f"{wish.name}_masks", boxes=wish.boxes, progress=tell
    )
    draw_pages(wish, store, run, before, after)
    door.show(figures, ec.report(run), wish)
    tell.say(table(figures))
    return figures


def table(figures: dict[str, Any]) -> str:
    """Figures before and after, as text."""
    lines = [f"{'held-out pages':<16}" + "".join(f"{name:>11}" for name in FIGURES)]
    for name, row in (("before", figures["baseline"]), ("after", figures)):
        lines.append(f"{name:<16}" + "".join(f"{row[figure]:>11.3f}" for figure in FIGURES))
    return "\n".join(lines)


def draw_pages(
    wish: argparse.Namespace,
    store: ec.EmbeddingStore,
    run: ec.Run,
    before: ec.Prediction,
    after: ec.Prediction,
) -> None:
    """One picture of each held-out page: as it is with its boxes, and what was found before and after."""
    numbers = [number for _, part in run.split["val"] for number in part]
    boxes = ec.EmbeddingDataset(store, wish.labels, prompts="boxes", boxes=wish.boxes, tiles=numbers).boxes
    assert boxes is not None  # the dataset was given some
    folder = wish.out / f"{wish.name}_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    with ec.open_volume(wish.pages) as pages:
        place_of = {pages.plane_name(plane): plane for plane in range(pages.n_planes)}
        for plane in sorted({store.tile(number).plane for number in numbers}):
            name, (height, width) = store.plane_name(plane), store.plane_size(plane)
            page = pages.read(place_of[name], slice(0, height), slice(0, width))
            drawn = [_with_boxes(page, boxes.of_plane(plane))]
            drawn += [_with_mask(page, prediction[plane]) for prediction in (before, after)]
            Image.fromarray(np.concatenate(drawn, axis=1)).save(folder / f"{Path(name).stem}.png")


def _with_boxes(page: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(_colours(page))
    pen = ImageDraw.Draw(image)
    for box in boxes:
        pen.rectangle(tuple(box), outline=GREEN, width=2)
    return np.asarray(image)


def _with_mask(page: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A page, pale, with a mask in full colour."""
    colours = _colours(page)
    pale = 255 - (255 - colours.astype(np.float32)) * 0.4
    return np.where(mask[..., None], np.array(GREEN) * 0.6 + colours * 0.4, pale).astype(np.uint8)


def _colours(page: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A page of 8 bits in three channels; others are scaled by their greatest value."""
    if page.dtype != np.uint8:
        page = (page.astype(np.float32) * (255 / max(1.0, float(page.max())))).astype(np.uint8)
    return page if page.ndim == 3 else np.repeat(page[..., None], 3, axis=2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", type=Path, help="a folder of images")
    parser.add_argument("boxes", type=Path, help="a CSV with image,x0,y0,x1,y1, or COCO JSON")
    parser.add_argument("labels", type=Path, help="a folder of masks, by the pages' names")
    parser.add_argument("--val", default="auto", help="pages to hold out, by name, with commas between")
    door.options(parser, out="stamp_boxes", tile=1024)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(door.run(main))
