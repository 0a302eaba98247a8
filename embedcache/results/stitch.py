"""Turns probabilities of overlapping tiles into whole planes at native resolution.

Where tiles overlap their probabilities are averaged with tent weights, which fall from the tile's middle to its
edge, where a prediction knows least of its surroundings. Where one tile stands alone its values pass unchanged
(to rounding). Pixels that no tile covers are NaN: *not predicted* is neither ink nor background.

A tile that is asked several times, once for each of a user's boxes, has the largest of the answers at each pixel;
one that is not asked, as no box lies on it, is background.

Memory is one plane and one batch of tiles, whatever the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcache.geometry import Tile
from embedcache.results.queries import Asked, PromptsOf, free_prompts, prompts_for
from embedcache.sam.decoder import Prompts, upscale_logits
from embedcache.store import EmbeddingStore
from embedcache.store.reader import EmbeddingReader

Floats = npt.NDArray[np.float32]

CPU = torch.device("cpu")

__all__ = ["Asked", "PromptsOf", "Stitcher", "free_prompts", "prompts_for", "stitch_plane", "tent"]


def tent(height: int, width: int) -> Floats:
    """Weights ``(height, width)`` in (0, 1]: one in the middle, falling linearly to the edge, never zero."""

    def ramp(size: int) -> Floats:
        place = np.arange(size, dtype=np.float32) + 0.5
        return np.asarray(np.minimum(place, size - place) * (2.0 / size), dtype=np.float32)

    return np.asarray(ramp(height)[:, None] * ramp(width)[None, :], dtype=np.float32)


def stitch_plane(size: tuple[int, int], pieces: Iterable[tuple[Tile, Floats]]) -> Floats:
    """Blend the tiles of one plane.

    Parameters
    ----------
    size : tuple of int
        Height and width of the plane in volume px.
    pieces : iterable of (Tile, ndarray of float32)
        Tiles of this plane and their probabilities at tile px; parts of a tile beyond the plane are dropped.

    Returns
    -------
    ndarray of float32, (height, width)
        Probabilities; NaN where no tile lies.
    """
    total = np.zeros(size, np.float32)
    weights = np.zeros(size, np.float32)
    for tile, values in pieces:
        height, width = min(tile.height, size[0] - tile.y0), min(tile.width, size[1] - tile.x0)
        place = np.s_[tile.y0 : tile.y0 + height, tile.x0 : tile.x0 + width]
        weight = tent(tile.height, tile.width)[:height, :width]
        total[place] += weight * values[:height, :width]
        weights[place] += weight
    return np.divide(total, weights, out=np.full(size, np.nan, np.float32), where=weights > 0)


@dataclass(frozen=True)
class Stitcher:
    """Predicts whole planes of a store with one decoder.

    Parameters
    ----------
    store : EmbeddingStore
        Where the embeddings are.
    decoder : nn.Module
        In evaluation mode, on ``device``.
    numbers : ndarray of int64
        Tile numbers to use; all must be committed.
    prompts_of : callable
        What a batch of tiles is asked; :func:`free_prompts`: each once, without prompts.
    device : torch.device
        Where the decoder runs.
    batch_size : int
        Tiles per decoder call.
    """

    store: EmbeddingStore
    decoder: nn.Module
    numbers: npt.NDArray[np.int64]
    prompts_of: PromptsOf = free_prompts
    device: torch.device = CPU
    batch_size: int = 8

    @property
    def planes(self) -> list[int]:
        """Planes that have at least one tile to predict, in order."""
        return list(self._numbers_of)

    def tiles_of(self, plane: int) -> list[int]:
        """Numbers of the tiles of one plane."""
        return self._numbers_of.get(plane, [])

    @cached_property
    def _numbers_of(self) -> dict[int, list[int]]:
        """Numbers by plane, in order: sorted once, as a volume has thousands of planes."""
        planes = self.store.table[self.numbers, 0]
        order = np.argsort(planes, kind="stable")
        found, starts = np.unique(planes[order], return_index=True)
        parts = np.split(self.numbers[order], starts[1:])
        return {int(plane): part.tolist() for plane, part in zip(found, parts, strict=False)}

    def plane(self, plane: int) -> Floats:
        """Probabilities ``(height, width)`` of one plane; NaN where no tile lies."""
        return stitch_plane(self.store.plane_size(plane), self.tiles(self.tiles_of(plane)))

    def tiles(self, numbers: list[int]) -> Iterator[tuple[Tile, Floats]]:
        """Each tile with its probabilities at tile px, in the order given."""
        with closing(self.store.reader()) as reader:
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                tiles = [self.store.tile(number) for number in batch]
                yield from zip(tiles, self._answers(batch, tiles, reader), strict=True)

    def _answers(self, batch: list[int], tiles: list[Tile], reader: EmbeddingReader) -> list[Floats]:
        """Probabilities of the tiles of a batch: the largest of the answers, or 0 without a question."""
        asked = self.prompts_of(batch)
        found: list[Floats | None] = [None] * len(batch)
        speaking = asked.speaking
        embeddings = reader.read([batch[place] for place in speaking]) if speaking else None
        for images, prompts in asked.calls():
            assert embeddings is not None  # calls come of tiles that speak
            logits = low_res_logits(self.decoder, embeddings[images], prompts, device=self.device)
            parts = torch.split(logits, list(prompts.counts))
            for place, part in zip(speaking[images], parts, strict=True):
                for low in part:
                    one, before = tile_probabilities(low, tiles[place]), found[place]
                    found[place] = one if before is None else np.maximum(before, one)
        return [
            np.zeros((tile.height, tile.width), np.float32) if answer is None else answer
            for tile, answer in zip(tiles, found, strict=True)
        ]


@torch.inference_mode()
def low_res_logits(
    decoder: nn.Module, embeddings: Tensor, prompts: Prompts, *, device: torch.device
) -> Tensor:
    """One decoder call: the first mask of every query, ``(Q, 256, 256)`` float32 on the CPU."""
    output = decoder(embeddings.to(device), prompts.to(device), multimask_output=False)
    logits: Tensor = output.low_res_logits[:, 0]
    return logits.float().cpu()


def tile_probabilities(low: Tensor, tile: Tile) -> Floats:
    """Low-resolution logits ``(256, 256)`` to probabilities at tile px."""
    return np.asarray(torch.sigmoid(upscale_logits(low, tile)).numpy(), dtype=np.float32)
