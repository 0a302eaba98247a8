"""Turns held-out tiles into pictures side by side: the image, the truth, the untrained and the trained decoder.

The image is read from the volume that the store's provenance names, where it can still be opened; otherwise the
three main components of the embedding stand for it, as training itself never needs the volume.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from embedcache.errors import StorageError, VolumeError
from embedcache.geometry import Tile
from embedcache.sam.decoder import upscale_logits
from embedcache.store import EmbeddingStore
from embedcache.train.asking.multimask import answers
from embedcache.train.asking.validation import VALIDATION_EPOCH
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.prompts import collate_prompts
from embedcache.train.truth.overlay import embedding_colours
from embedcache.volume import ImageVolume, Volume, open_volume

Bools = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

SHOWN_SIDE = 420
"""Longer side of a picture on the page, in px."""

HIT, FALSE_ALARM, MISS = (38, 166, 141), (240, 128, 60), (139, 108, 246)
"""Right, wrongly found, and overlooked; told apart by colour-blind eyes too."""


@dataclass(frozen=True)
class TileRow:
    """One tile's pictures, as ``data:`` addresses, and where it lies."""

    place: str
    image: str
    truth: str
    untrained: str
    trained: str
    dice_untrained: float
    dice_trained: float


def draw_tiles(
    dataset: EmbeddingDataset,
    numbers: Sequence[int],
    untrained: tuple[nn.Module, float],
    trained: tuple[nn.Module, float],
    *,
    count: int = 4,
) -> tuple[list[TileRow], bool]:
    """Pictures of some of the given tiles.

    Parameters
    ----------
    dataset : EmbeddingDataset
        Store, labels, prompts.
    numbers : sequence of int
        Tiles to choose from; those with positives are preferred, evenly spread.
    untrained, trained : (nn.Module, float)
        Decoders and their thresholds in logits.
    count : int
        At most this many.

    Returns
    -------
    list of TileRow, bool
        And whether the volume itself was shown.
    """
    store = dataset.store
    volume = source_volume(store)
    rows = []
    for number in choose(dataset, numbers, count):
        tile = store.tile(number)
        embedding = store[number]
        pixels = None if volume is None else _pixels(store, volume, tile)
        if pixels is None:
            volume, pixels = None, _colours(embedding, tile)
        truth, counted = dataset.labels.crop(tile) > 0, dataset.labels.supervised(tile)
        found = [
            answer(decoder, dataset, number, embedding) > threshold
            for decoder, threshold in (untrained, trained)
        ]
        rows.append(
            TileRow(
                place=f"{store.plane_name(tile.plane)}, rows {tile.y0}–{tile.y0 + tile.height}, "
                f"columns {tile.x0}–{tile.x0 + tile.width}",
                image=_address(pixels),
                truth=_address(_paint(pixels, [(truth & counted, HIT)])),
                untrained=_address(_compare(pixels, found[0], truth, counted)),
                trained=_address(_compare(pixels, found[1], truth, counted)),
                dice_untrained=_dice(found[0], truth, counted),
                dice_trained=_dice(found[1], truth, counted),
            )
        )
    if volume is not None:
        volume.close()
    return rows, volume is not None


def choose(dataset: EmbeddingDataset, numbers: Sequence[int], count: int) -> list[int]:
    """Up to ``count`` tiles, evenly over those with positives (over all where none has any)."""
    positive = dataset.labels.positive(dataset.store, numbers)
    usable = [int(n) for n, p in zip(numbers, positive, strict=True) if p > 0] or [int(n) for n in numbers]
    places = np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int))
    return [usable[place] for place in places]


@torch.inference_mode()
def answer(
    decoder: nn.Module, dataset: EmbeddingDataset, number: int, embedding: torch.Tensor
) -> npt.NDArray[np.float32]:
    """Logits of a tile at tile px, asked as validation asks; of several objects the largest."""
    asked = dataset.question(number, VALIDATION_EPOCH)
    prompts = collate_prompts([asked.first_prompts], [asked.queries])
    logits = upscale_logits(answers(decoder.eval(), embedding[None], prompts), asked.tile)
    return np.asarray(logits.amax(dim=0).numpy(), dtype=np.float32)


def source_volume(store: EmbeddingStore) -> Volume | None:
    """The volume that a store was made from, in the store's order; None where it is gone or was replaced."""
    recipe = store.provenance.get("recipe", {})
    try:
        volume = open_volume(str(store.provenance.get("source", "")), level=int(recipe.get("level", 0)))
    except (VolumeError, StorageError):  # gone, or an address that cannot be reached just now
        return None
    if isinstance(volume, ImageVolume) and store.images:
        volume = volume.reordered([image.name for image in store.images])
    return volume


def _pixels(store: EmbeddingStore, volume: Volume, tile: Tile) -> Pixels | None:
    preprocess = store.spec.preprocess
    try:
        return preprocess.to_image(preprocess.read(volume, tile))
    except (VolumeError, StorageError):
        return None


def _colours(embedding: torch.Tensor, tile: Tile) -> Pixels:
    """The embedding's main components at tile px."""
    height, width = tile.input_size
    box = (0.0, 0.0, width / 16, height / 16)
    size = (tile.width, tile.height)
    colours = Image.fromarray(embedding_colours(embedding)).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(colours)


def _compare(pixels: Pixels, found: Bools, truth: Bools, counted: Bools) -> Pixels:
    parts = [(found & truth, HIT), (found & ~truth, FALSE_ALARM), (truth & ~found, MISS)]
    return _paint(pixels, [(part & counted, colour) for part, colour in parts])


def _paint(pixels: Pixels, parts: Sequence[tuple[Bools, tuple[int, int, int]]]) -> Pixels:
    """Lay colours over a dimmed, grey version of the pixels."""
    grey = pixels.mean(axis=2, keepdims=True) * 0.62
    painted = np.repeat(grey, 3, axis=2)
    for part, colour in parts:
        painted[part] = 0.3 * painted[part] + 0.7 * np.array(colour)
    return painted.astype(np.uint8)


def _dice(found: Bools, truth: Bools, counted: Bools) -> float:
    found, truth = found & counted, truth & counted
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def _address(pixels: Pixels) -> str:
    """A picture as a ``data:`` address, at most :data:`SHOWN_SIDE` px on its longer side."""
    picture = Image.fromarray(pixels)
    scale = SHOWN_SIDE / max(picture.size)
    if scale < 1:
        size: Any = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
