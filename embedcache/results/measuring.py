"""Turns tiles, labels and decoders into counts at thresholds: of stitched planes, or of objects one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedcache.progress import Progress
from embedcache.results.stitch import Stitcher, prompts_for
from embedcache.results.thresholds import ProbabilityCounts
from embedcache.store import EmbeddingStore
from embedcache.train.asking.validation import Held, measure
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.truth.labels import Labels


@dataclass(frozen=True)
class Measuring:
    """How decoders are asked about the tiles of one store and counted, the same for each.

    Parameters
    ----------
    store : EmbeddingStore
    labels : Labels
        The truth.
    numbers : ndarray of int64
        Tiles, all of them encoded.
    prompts : str
        What is asked with.
    device : torch.device
        Where the decoders run.
    batch_size : int
        Tiles per call.
    progress : Progress
        Where to report to.
    start, boxes : path, optional
        Files of the prompts ``mask`` and ``boxes``.
    """

    store: EmbeddingStore
    labels: Labels
    numbers: npt.NDArray[np.int64]
    prompts: str
    device: torch.device
    batch_size: int
    progress: Progress
    start: str | Path | None
    boxes: str | Path | None

    def stitched(self, decoders: Sequence[nn.Module], thresholds: Sequence[float]) -> list[ProbabilityCounts]:
        """Counts of stitched planes, each pixel once, for each decoder."""
        prompts_of = prompts_for(
            *(self.prompts, self.store, self.numbers, self.start, self.labels.source),
            boxes=self.boxes,
            progress=self.progress,
        )
        stitchers = [
            Stitcher(
                self.store,
                decoder.eval().to(self.device),
                self.numbers,
                prompts_of,
                self.device,
                self.batch_size,
            )
            for decoder in decoders
        ]
        counts = [ProbabilityCounts(thresholds) for _ in decoders]
        planes = stitchers[0].planes
        self.progress.start("evaluating planes", len(planes))
        for plane in planes:
            truth, counted = truth_of_plane(self.store, self.labels, stitchers[0].tiles_of(plane), plane)
            for row, stitcher in zip(counts, stitchers, strict=True):
                row.add(stitcher.plane(plane), truth, counted)
            self.progress.advance()
        self.progress.finish()
        return counts

    def objects(
        self, decoders: Sequence[nn.Module], thresholds: Sequence[float], objects: str | None
    ) -> list[ProbabilityCounts]:
        """Counts of objects asked one by one with prompts from the truth: at most 8 of a tile, the same ones."""
        dataset = EmbeddingDataset(
            self.store, self.labels, prompts=self.prompts, tiles=self.numbers, objects=objects
        )
        held = Held(dataset, tuple(int(number) for number in dataset.tiles))
        found = []
        for decoder in decoders:
            counts = ProbabilityCounts(thresholds)
            probabilities = np.array(counts.thresholds, dtype=np.float64)
            with np.errstate(divide="ignore"):
                logits = np.log(probabilities) - np.log1p(-probabilities)
            counted = measure(decoder.to(self.device), [held], self.device, logits)
            counts.counted = counted.tensor.numpy().astype(np.int64)
            found.append(counts)
        return found


def truth_of_plane(
    store: EmbeddingStore, labels: Labels, numbers: list[int], plane: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Truth of a plane and where it counts: two bool arrays (height, width); False beyond the given tiles."""
    height, width = store.plane_size(plane)
    truth, counted = np.zeros((height, width), np.bool_), np.zeros((height, width), np.bool_)
    for number in numbers:
        tile = store.tile(number)
        rows, columns = tile.slices
        place = (slice(rows.start, min(rows.stop, height)), slice(columns.start, min(columns.stop, width)))
        size = np.s_[: place[0].stop - place[0].start, : place[1].stop - place[1].start]
        truth[place] = labels.crop(tile)[size] > 0
        counted[place] = labels.supervised(tile)[size]
    return truth, counted
