"""Turns a seed into made-up infrared photographs of written fragments, with ink and parchment masks.

Each fragment is a torn piece of parchment on a dark ground, unevenly lit, with lines of carbon ink, which stays
black in the infrared while stains fade. Every photograph has its own size, as real ones do, so that whole
images can be held out.

Equal seeds give equal pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from embedcache.demo.phantom import draw_letter
from embedcache.demo.pictures import write_png

Floats = npt.NDArray[np.float32]

SIZES = ((300, 420), (380, 300), (256, 512), (340, 340), (290, 470), (420, 310))
"""Height and width of the photographs, in px."""


@dataclass(frozen=True)
class Fragment:
    """One photograph and its masks.

    Parameters
    ----------
    name : str
        Stem of the files.
    image : ndarray of uint8, (h, w, 3)
        Three equal channels, as infrared photographs are usually stored.
    ink, parchment : ndarray of bool, (h, w)
    """

    name: str
    image: npt.NDArray[np.uint8]
    ink: npt.NDArray[np.bool_]
    parchment: npt.NDArray[np.bool_]


def make_fragment(height: int, width: int, *, seed: int, name: str = "fragment") -> Fragment:
    """Make one photograph of ``height × width`` px."""
    rng = np.random.default_rng(seed)
    parchment = _torn_outline(rng, height, width)
    ink = _writing(rng, height, width) & ndimage.binary_erosion(parchment, iterations=3)
    worn = ink & (_cloud(rng, height, width, 5) > 1.5)  # ink that has flaked off
    ink &= ~worn
    stains = ndimage.gaussian_filter(np.maximum(_cloud(rng, height, width, 22) - 0.6, 0), 3)
    skin = 158 + 9 * _cloud(rng, height, width, 2) + 12 * _cloud(rng, height, width, 40) - 34 * stains
    depth = ndimage.distance_transform_edt(parchment)
    skin = skin - 45 * np.exp(-depth / 5)  # edges curl away from the light
    ground = 26 + 3 * _cloud(rng, height, width, 1)
    black = 62 + 11 * _cloud(rng, height, width, 2)
    cover = np.clip(ndimage.gaussian_filter(ink.astype(np.float32), 0.8), 0, 1)
    grey = np.where(parchment, skin * (1 - cover) + black * cover, ground)
    grey = ndimage.gaussian_filter(grey, 0.6) * _light(rng, height, width)
    grey = grey + rng.normal(0, 3.0, grey.shape)
    pixels = np.clip(grey, 0, 255).astype(np.uint8)
    return Fragment(name, np.repeat(pixels[:, :, None], 3, axis=2), ink, parchment)


def _cloud(rng: np.random.Generator, height: int, width: int, sigma: float) -> Floats:
    """Smooth noise of mean 0 and deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=(height, width)), sigma)
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def _torn_outline(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.bool_]:
    """A rough, torn shape that leaves a margin of dark ground."""
    y, x = np.mgrid[0:height, 0:width]
    angle = np.arctan2((y - height / 2) / height, (x - width / 2) / width)
    radius = np.maximum(np.abs(y - height / 2) / (0.45 * height), np.abs(x - width / 2) / (0.45 * width))
    tears = sum(rng.uniform(0.2, 1.0) / k * np.sin(k * angle + rng.uniform(0, 6.3)) for k in range(3, 30, 2))
    rough = radius + 0.07 * tears + 0.02 * _cloud(rng, height, width, 3)
    shape = np.asarray(rough < 0.94)
    pieces, _ = ndimage.label(shape)
    shape = pieces == pieces[height // 2, width // 2] if pieces[height // 2, width // 2] else shape
    holes = _cloud(rng, height, width, 9) > 2.7
    return np.asarray(shape & ~holes, dtype=np.bool_)


def _writing(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Lines of made-up letters, slightly tilted."""
    page = Image.new("1", (width, height), 0)
    draw = ImageDraw.Draw(page)
    size = int(rng.integers(22, 30))
    tilt = float(rng.uniform(-0.04, 0.04))
    for top in range(int(0.1 * height), int(0.92 * height) - size, int(1.75 * size)):
        left = 0.1 * width + float(rng.uniform(0, size))
        while left < 0.92 * width - size:
            if rng.random() < 0.86:
                stroke = int(rng.integers(4, 7))
                draw_letter(draw, rng, left, top + tilt * left, 0.7 * size, size, stroke=stroke)
            left += 1.15 * size
    return np.asarray(page, dtype=np.bool_)


def _light(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A lamp from one side and a lens that darkens the corners."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    return np.asarray(1.02 + 0.3 * (np.cos(direction) * x + np.sin(direction) * y) - 0.3 * (x * x + y * y))


def write_fragments(
    folder: Path, *, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0
) -> dict[str, Path]:
    """Write fragments as ``images/``, ``ink_masks/`` and ``parchment_masks/``, one PNG each.

    Returns
    -------
    dict of str to Path
        ``volume``, ``ink``, ``parchment``: the three folders.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    paths = {
        "volume": folder / "images",
        "ink": folder / "ink_masks",
        "parchment": folder / "parchment_masks",
    }
    for number, (height, width) in enumerate(sizes):
        part = make_fragment(height, width, seed=1000 * seed + number, name=f"fragment_{number + 1}")
        write_png(paths["volume"] / f"{part.name}.png", part.image)
        write_png(paths["ink"] / f"{part.name}.png", part.ink.astype(np.uint8) * np.uint8(255))
        write_png(paths["parchment"] / f"{part.name}.png", part.parchment.astype(np.uint8) * np.uint8(255))
    return paths
