"""Turns one tile's embedding and labels into a picture that shows whether the labels lie where they should.

Training never opens the volume, so the picture's colours are the three main components of the embedding.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from embedcache.files import write_file
from embedcache.geometry import IMAGE_SIZE, Tile

LONG_SIDE = 768
OUTLINE = (255, 255, 255)
BOX = (0, 200, 60)


def embedding_colours(embedding: Tensor) -> npt.NDArray[np.uint8]:
    """The first three principal components as RGB: (256, 64, 64) to uint8 (64, 64, 3), 2nd to 98th percentile."""
    channels, height, width = embedding.shape
    pixels = embedding.float().numpy().reshape(channels, -1).T.astype(np.float64)
    pixels = pixels - pixels.mean(axis=0)
    axes = np.linalg.eigh(pixels.T @ pixels)[1][:, ::-1][:, :3]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(3)] < 0, -1, 1)  # a sign of its own
    components = pixels @ axes
    low, high = np.percentile(components, [2, 98], axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-9), 0, 1)
    return np.asarray((scaled * 255).round(), dtype=np.uint8).reshape(height, width, 3)


def draw_overlay(
    embedding: Tensor, labels: npt.NDArray[Any], tile: Tile, *, boxes: npt.NDArray[np.float64] | None = None
) -> Image.Image:
    """A tile's embedding in colours with the outlines of its labels, and the boxes that it is asked with.

    Parameters
    ----------
    embedding : Tensor (256, 64, 64)
    labels : ndarray (height, width)
        bool or int32, in tile px.
    tile : Tile
    boxes : float64 (P, 4), optional
        xyxy edges in tile px.
    """
    scale = LONG_SIDE / max(tile.height, tile.width)
    size = max(1, round(tile.width * scale)), max(1, round(tile.height * scale))
    height, width = tile.input_size
    side = embedding.shape[1] / IMAGE_SIZE
    content = (0.0, 0.0, width * side, height * side)
    colours = Image.fromarray(embedding_colours(embedding))
    picture = np.array(colours.resize(size, Image.Resampling.BILINEAR, box=content))
    rows = np.minimum((np.arange(size[1]) + 0.5) / scale, tile.height - 1).astype(int)
    columns = np.minimum((np.arange(size[0]) + 0.5) / scale, tile.width - 1).astype(int)
    shown = labels[rows][:, columns].astype(np.int32)
    edge = ndimage.maximum_filter(shown, 3) != ndimage.minimum_filter(shown, 3)
    picture[edge] = OUTLINE
    drawn = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawn)
    for x0, y0, x1, y1 in np.zeros((0, 4)) if boxes is None else boxes * scale:
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=BOX, width=2)
    return drawn


def save_overlay(
    path: Path,
    embedding: Tensor,
    labels: npt.NDArray[Any],
    tile: Tile,
    *,
    boxes: npt.NDArray[np.float64] | None = None,
) -> None:
    """Write :func:`draw_overlay` as PNG."""
    buffer = io.BytesIO()
    draw_overlay(embedding, labels, tile, boxes=boxes).save(buffer, "PNG")
    write_file(path, buffer.getvalue())
