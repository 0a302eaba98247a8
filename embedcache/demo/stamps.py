"""Turns a seed into made-up document pages with stamps, and the boxes that somebody drew around them.

A page is paper with lines of writing. Some carry round or square stamps in a lighter ink that bleeds; a box lies
loosely around each, and a few boxes around nothing, as a hasty hand draws them. The masks hold the stamp's ink.
Pages differ in size, as scans do.

Equal seeds give equal pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from embedcache.demo.phantom import draw_letter
from embedcache.demo.pictures import write_png
from embedcache.files import write_file

SIZES = ((420, 300), (380, 320), (440, 310), (400, 280), (360, 330), (410, 300))
"""Height and width of the pages, in px."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Page:
    """One page, its stamps and the boxes around them.

    Parameters
    ----------
    name : str
        Stem of the files.
    image : uint8 (h, w, 3)
    stamps : bool (h, w)
    boxes : tuple of (x0, y0, x1, y1)
        Edges in px; some hold nothing.
    """

    name: str
    image: npt.NDArray[np.uint8]
    stamps: npt.NDArray[np.bool_]
    boxes: tuple[Box, ...]


def make_page(height: int, width: int, *, seed: int, name: str = "page") -> Page:
    """Make one page of ``height × width`` px, each at least 64."""
    rng = np.random.default_rng(seed)
    side = min(height, width)
    stamps = np.zeros((height, width), np.bool_)
    boxes: list[Box] = []
    for _ in range(2):
        radius = int(rng.integers(side // 9, side // 6))
        y, x = (int(rng.integers(radius + 4, length - radius - 4)) for length in (height, width))
        loose = rng.integers(1, 5, 4)
        box = (x - radius - loose[0], y - radius - loose[1], x + radius + loose[2], y + radius + loose[3])
        if not any(_meet(box, other) for other in boxes):
            stamps |= _stamp(rng, (height, width), (y, x), radius)
            boxes.append(tuple(int(edge) for edge in box))  # type: ignore[arg-type]
    empty = (2, 2, 2 + side // 6, 2 + side // 7)
    if seed % 3 == 2 and not any(_meet(empty, other) for other in boxes):
        boxes.append(empty)
    writing = _writing(rng, height, width)
    paper = 226 + 5 * ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.2)[..., None] * np.ones(3)
    paper -= 12 * ndimage.gaussian_filter(rng.normal(size=(height, width)), 20)[..., None]
    bleeding = ndimage.gaussian_filter(stamps.astype(np.float32), 0.8)[..., None]
    paper = paper * (1 - 0.75 * bleeding) + 0.75 * bleeding * np.array([150, 62, 70])
    ink = ndimage.gaussian_filter(writing.astype(np.float32), 0.6)[..., None]
    paper = paper * (1 - ink) + ink * 55 + rng.normal(0, 3, paper.shape)
    return Page(name, np.clip(paper, 0, 255).astype(np.uint8), stamps, tuple(boxes))


def _meet(one: Any, other: Box) -> bool:
    return bool(one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


def _stamp(
    rng: np.random.Generator, size: tuple[int, int], middle: tuple[int, int], radius: int
) -> npt.NDArray[np.bool_]:
    """A ring or a frame with a device in it, worn in places."""
    page = Image.new("1", (size[1], size[0]), 0)
    pen = ImageDraw.Draw(page)
    y, x = middle
    outer = (x - radius, y - radius, x + radius, y + radius)
    thick = max(2, radius // 5)
    (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(outer, outline=1, width=thick)
    inner = int(0.8 * radius)
    draw_letter(pen, rng, x - inner // 2, y - inner // 2, inner, inner, stroke=thick)
    worn = ndimage.gaussian_filter(rng.normal(size=size), 2)
    return np.asarray(np.asarray(page, dtype=np.bool_) & (worn < 1.8 * worn.std()))


def _writing(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.bool_]:
    page = Image.new("1", (width, height), 0)
    pen = ImageDraw.Draw(page)
    size = max(7, min(height, width) // 28)
    for top in range(size, height - 2 * size, int(1.9 * size)):
        left = float(rng.uniform(1, 2)) * size
        while left < width - 2 * size:
            if rng.random() < 0.85:
                draw_letter(pen, rng, left, top, 0.6 * size, size, stroke=max(1, size // 7))
            left += 0.95 * size
    return np.asarray(page, dtype=np.bool_)


def write_stamps(
    folder: Path, *, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0
) -> dict[str, Path]:
    """Write ``pages/``, ``masks/``, and the same boxes as ``boxes.csv`` and as COCO, ``boxes.json``.

    Returns
    -------
    dict of str to Path
        ``pages``, ``masks``, ``csv``, ``coco``.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    paths = {
        "pages": folder / "pages",
        "masks": folder / "masks",
        "csv": folder / "boxes.csv",
        "coco": folder / "boxes.json",
    }
    made = [
        make_page(*size, seed=1000 * seed + number, name=f"page_{number + 1}")
        for number, size in enumerate(sizes)
    ]
    for page in made:
        write_png(paths["pages"] / f"{page.name}.png", page.image)
        write_png(paths["masks"] / f"{page.name}.png", page.stamps.astype(np.uint8) * np.uint8(255))
    rows = [f"{page.name}.png,{','.join(map(str, box))},stamp" for page in made for box in page.boxes]
    write_file(paths["csv"], "\n".join(["image,x0,y0,x1,y1,label", *rows, ""]).encode())
    write_file(paths["coco"], json.dumps(_coco(made), indent=1).encode())
    return paths


def _coco(pages: list[Page]) -> dict[str, Any]:
    annotations = [
        {"image_id": number, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for number, page in enumerate(pages, 1)
        for x0, y0, x1, y1 in page.boxes
    ]
    return {
        "images": [
            {"id": n, "file_name": f"{p.name}.png", "height": p.image.shape[0], "width": p.image.shape[1]}
            for n, p in enumerate(pages, 1)
        ],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "stamp"}],
    }
