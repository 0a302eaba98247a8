"""Turns held-out tiles into pictures of what was asked and answered, so that a training can be watched.

Left is the question, right the answer. Training has no volume, so the question's colours are the embedding's
main components; points are green where they say *in* and red where they say *out*, boxes are green. The answer is
yellow where it says yes and grey where it says no, dim where it is a guess: so a decoder that has learnt nothing
yet is dim all over, and its noise hides nothing. The truth is outlined in white on both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor, nn

from embedcache.files import write_file
from embedcache.geometry import IMAGE_SIZE, Tile
from embedcache.sam.decoder import Prompts, upscale_logits
from embedcache.train.asking.multimask import answers
from embedcache.train.asking.validation import VALIDATION_EPOCH, Held
from embedcache.train.loggers import Logger
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.prompts import collate_prompts
from embedcache.train.truth.overlay import embedding_colours

FOLDER = "pictures"
"""Folder of a run."""

MOST_PICTURES = 4
LONG_SIDE = 512
TRUTH, ANSWER = (255, 255, 255), (255, 221, 0)
IN, OUT = (0, 200, 60), (230, 30, 30)
RADIUS = 5

BETWEEN = 4
DIM = 0.35
"""Brightness of what is a guess; see :func:`_shaded`."""

Bools = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]
Places = npt.NDArray[np.float64]
Margins = npt.NDArray[np.float32]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Frame:
    """Where a tile's pixels lie in its picture.

    Parameters
    ----------
    tile : Tile
    size : tuple of int
        Height and width of the picture.
    """

    tile: Tile
    size: tuple[int, int]

    @classmethod
    def of(cls, tile: Tile, long_side: int = LONG_SIDE) -> Frame:
        """A picture of the given longer side."""
        scale = long_side / max(tile.height, tile.width)
        return cls(tile, (max(1, round(tile.height * scale)), max(1, round(tile.width * scale))))

    def place(self, xy: npt.ArrayLike) -> Places:
        """Pixels of the 1024 frame ``(..., 2)`` to pixels of the picture, (x, y)."""
        height, width = self.tile.input_size
        factors = np.array([self.size[1] / width, self.size[0] / height])
        half = (
            0.5 * IMAGE_SIZE / max(self.tile.height, self.tile.width)
        )  # a prompt names a pixel: its middle is meant
        return np.asarray((np.asarray(xy, dtype=np.float64) + half) * factors)

    def corners(self, xyxy: npt.ArrayLike) -> Places:
        """Boxes ``(..., 4)`` of the 1024 frame to edges in the picture."""
        height, width = self.tile.input_size
        factors = np.array([self.size[1] / width, self.size[0] / height] * 2)
        return np.asarray(np.asarray(xyxy, dtype=np.float64) * factors)

    def sampled(self, pixels: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """Tile px ``(height, width)`` at the picture's own size, each the nearest."""
        rows = ((np.arange(self.size[0]) + 0.5) * self.tile.height / self.size[0]).astype(int)
        columns = ((np.arange(self.size[1]) + 0.5) * self.tile.width / self.size[1]).astype(int)
        return np.asarray(pixels[rows][:, columns])


def draw_tile(embedding: Tensor, tile: Tile, truth: Bools, answer: Margins, prompts: Prompts) -> Pixels:
    """One tile with everything that was asked of it, and beside it what was answered.

    Parameters
    ----------
    embedding : float32 (256, 64, 64)
    tile : Tile
    truth : bool (height, width)
        In tile px.
    answer : float32 (height, width)
        In tile px: logits less the threshold, so that what is in the answer is above 0.
    prompts : Prompts
        All of this tile, in the 1024 frame.

    Returns
    -------
    uint8 (height, 2 · width + 4, 3), the longer side of each half 512
    """
    frame = Frame.of(tile)
    height, width = tile.input_size
    cells = embedding.shape[1] / IMAGE_SIZE
    colours = Image.fromarray(embedding_colours(embedding.cpu()))
    size = (frame.size[1], frame.size[0])
    box = (0.0, 0.0, width * cells, height * cells)
    question = np.array(colours.resize(size, Image.Resampling.BILINEAR, box=box))
    answered = _shaded(frame.sampled(answer))
    outlined = frame.sampled(truth)
    edge = ndimage.maximum_filter(outlined, 3) != ndimage.minimum_filter(outlined, 3)
    question[edge] = answered[edge] = TRUTH
    image = Image.fromarray(question)
    _draw_prompts(ImageDraw.Draw(image), frame, prompts)
    between = np.zeros((frame.size[0], BETWEEN, 3), np.uint8)
    return np.concatenate([np.asarray(image), between, answered], axis=1)


def _shaded(answer: Margins) -> Pixels:
    """Colours of an answer, by how sure it is: yellow above 0, grey below, both dim at 0 where it is a guess."""
    sure = np.abs(np.tanh(answer / 2))[..., None]  # 0 at the threshold, 1 far from it
    yes = np.array(ANSWER) * (DIM + (1 - DIM) * sure)
    no = np.full(3, 255) * DIM * (1 - sure)
    return np.where(answer[..., None] > 0, yes, no).round().astype(np.uint8)


def _draw_prompts(pen: ImageDraw.ImageDraw, frame: Frame, prompts: Prompts) -> None:
    if prompts.boxes is not None:
        asked = (
            torch.ones(prompts.queries, dtype=torch.bool)
            if prompts.has_box is None
            else prompts.has_box.cpu()
        )
        for box in frame.corners(prompts.boxes.cpu()[asked].numpy()):
            pen.rectangle(tuple(box), outline=IN, width=2)
    if prompts.point_coords is None or prompts.point_labels is None:
        return
    labels = prompts.point_labels.cpu()
    most = labels.shape[1]
    counts = torch.full((len(labels),), most) if prompts.point_counts is None else prompts.point_counts.cpu()
    shown = (torch.arange(most) < counts[:, None]) & (labels >= 0)
    places = frame.place(prompts.point_coords.cpu()[shown].numpy())
    for (x, y), label in zip(places, labels[shown].tolist(), strict=True):
        ring = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
        pen.ellipse(ring, fill=IN if label == 1 else OUT, outline=(0, 0, 0))


def draw_validation(
    model: nn.Module,
    held: Sequence[Held],
    device: torch.device,
    *,
    folder: Path,
    step: int,
    logger: Logger,
    threshold: float = 0.0,
) -> list[Path]:
    """Draw some held-out tiles as the model answers them now, into ``pictures/`` of a run and to its loggers.

    Parameters
    ----------
    model : nn.Module
        A decoder; put into evaluation mode and back into the mode it was in.
    held : sequence of Held
        How they are asked; validation's own, first those that shall be seen.
    device : torch.device
        Where the model is.
    folder : Path
        Of the run.
    step : int
    logger : Logger
    threshold : float
        Logit above which a pixel is in the answer.

    Returns
    -------
    list of Path
        At most four files, ``step-NNNNNN-TILE.png``; the same tiles each time.
    """
    was_training = model.training
    model.eval()
    written = []
    try:
        for index, part, number in shown_tiles(held):
            pixels = picture_of(model, part.dataset, number, device, threshold)
            name = f"{index}-{number}" if len(held) > 1 else str(number)
            path = folder / FOLDER / f"step-{step:06d}-{name}.png"
            write_file(path, _png(pixels))
            logger.picture(step, f"tile-{name}", pixels)
            written.append(path)
    finally:
        model.train(was_training)
    return written


def shown_tiles(held: Sequence[Held]) -> list[tuple[int, Held, int]]:
    """At most four tiles with something in them, evenly over all parts and the same at every validation."""
    found: list[tuple[int, Held, int]] = []
    for index, part in enumerate(held):
        positive = part.dataset.labels.positive(part.dataset.store, part.numbers)
        found += [(index, part, n) for n, count in zip(part.numbers, positive, strict=True) if count]
    found = found or [(index, part, number) for index, part in enumerate(held) for number in part.numbers]
    places = np.unique(np.linspace(0, len(found) - 1, min(MOST_PICTURES, len(found))).round().astype(int))
    return [found[place] for place in places]


@torch.inference_mode()
def picture_of(
    model: nn.Module, dataset: EmbeddingDataset, number: int, device: torch.device, threshold: float
) -> Pixels:
    """A tile asked as validation asks it, and drawn: of several objects the answers together."""
    asked = dataset.question(number, VALIDATION_EPOCH)
    prompts = collate_prompts([asked.first_prompts], [asked.queries])
    tile, embedding = asked.tile, dataset.store[asked.number]
    truth = (dataset.labels.crop(tile) > 0) & dataset.labels.supervised(tile)
    logits = answers(model, embedding[None].to(device), prompts.to(device))
    answer = upscale_logits(logits, tile).amax(dim=0).float() - threshold
    return draw_tile(embedding, tile, truth, answer.cpu().numpy(), prompts)


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
