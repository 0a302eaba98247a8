"""Turns a decoder and held-out tiles into figures: no optimiser step, no dropout, no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.sam.decoder import Decoder, upscale_logits
from embedcache.train.dataset import EmbeddingDataset
from embedcache.train.metrics import THRESHOLDS, ThresholdCounts
from embedcache.train.prompts import TilePrompts, collate_prompts, first_round, make_prompts

VALIDATION_EPOCH = 2**31
"""Stands for the epoch in validation's draws, so that every validation asks the same questions."""


@dataclass(frozen=True)
class Held:
    """Held-out tiles of one store and how they are asked.

    Parameters
    ----------
    dataset : EmbeddingDataset
        Its store, labels, prompts and objects.
    numbers : tuple of int
        Tile numbers.
    """

    dataset: EmbeddingDataset
    numbers: tuple[int, ...]


def measure(
    decoder: Decoder,
    held: Sequence[Held],
    device: torch.device,
    thresholds: npt.NDArray[np.float64] = THRESHOLDS,
) -> ThresholdCounts:
    """Ask the decoder for every object of the held-out tiles and count pixels at native resolution.

    Parameters
    ----------
    decoder : Decoder
        Put into evaluation mode and back into the mode it was in.
    held : sequence of Held
        One entry per store; ``iterative`` prompts are asked by their first point or box.
    device : torch.device
        Where the decoder is.
    thresholds : ndarray of float64
        Logits at which pixels are counted.
    """
    counts = ThresholdCounts(thresholds)
    was_training = decoder.training
    decoder.eval()
    try:
        with torch.inference_mode():
            for part in held:
                with_reader = part.dataset.store.reader()
                try:
                    for number in part.numbers:
                        embedding = with_reader.read([number]).to(device)
                        _measure_tile(decoder, part.dataset, number, embedding, counts)
                finally:
                    with_reader.close()
    finally:
        decoder.train(was_training)
    return counts


def _measure_tile(
    decoder: Decoder, dataset: EmbeddingDataset, number: int, embedding: Tensor, counts: ThresholdCounts
) -> None:
    tile = dataset.store.tile(number)
    rng = np.random.default_rng([dataset.seed, VALIDATION_EPOCH, number])
    masks, supervised = dataset.masks(number, rng)
    prompts: TilePrompts = make_prompts(dataset.prompts, masks, tile, rng)
    ragged = first_round(collate_prompts([prompts], [len(masks)]), rng)
    output = decoder(embedding, ragged.to(embedding.device))
    counted = torch.from_numpy(supervised).to(embedding.device)
    for logits, mask in zip(output.low_res_logits[:, 0], masks, strict=True):
        truth = torch.from_numpy(mask).to(embedding.device)
        counts.add(upscale_logits(logits, tile), truth, counted)


def fixed_subset(held: Sequence[Held], limit: int) -> tuple[Held, ...]:
    """At most ``limit`` of the tiles, evenly over all of them and the same every time; with-positives first.

    Half of the places are kept for tiles with positives, so that rare ink is not missed by the spacing.
    """
    if sum(len(part.numbers) for part in held) <= limit:
        return tuple(held)
    share = max(1, limit // max(1, len(held)))
    chosen = []
    for part in held:
        positive = part.dataset.labels.positive(part.dataset.store, part.numbers) > 0
        numbers = np.asarray(part.numbers)
        with_some = _spread(numbers[positive], max(share // 2, share - int((~positive).sum())))
        rest = _spread(numbers[~positive], share - len(with_some))
        chosen.append(Held(part.dataset, tuple(sorted(int(n) for n in [*with_some, *rest]))))
    return tuple(part for part in chosen if part.numbers)


def _spread(numbers: np.ndarray[tuple[int], np.dtype[np.int64]], count: int) -> list[int]:
    if len(numbers) <= count:
        return [int(number) for number in numbers]
    places = np.linspace(0, len(numbers) - 1, count).round().astype(int)
    return [int(number) for number in numbers[places]]
