"""Turns a decoder and held-out tiles into figures: no optimiser step, no dropout, no gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcache.geometry import Tile
from embedcache.sam.decoder import upscale_logits
from embedcache.sam.prompts import Prompts
from embedcache.store.reader import EmbeddingReader
from embedcache.store.shards.shard import INT8
from embedcache.train.asking.metrics import THRESHOLDS, ThresholdCounts
from embedcache.train.asking.multimask import answers
from embedcache.train.questions.batch import collate_questions
from embedcache.train.questions.dataset import EmbeddingDataset

VALIDATION_EPOCH = 2**31
"""Stands for the epoch in validation's draws, so that every validation asks the same questions."""

TILES_PER_CALL = {"cpu": 2, "cuda": 8}


class Sharers(Protocol):
    """Processes that measure together; :class:`embedcache.train.stepping.ranks.Ranks` are."""

    @property
    def rank(self) -> int:
        """This one's number."""

    @property
    def world(self) -> int:
        """How many there are."""

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over all, in place."""


@dataclass(frozen=True)
class Held:
    """Held-out tiles of one store and how they are asked.

    Parameters
    ----------
    dataset : EmbeddingDataset
        Its store, labels, prompts and objects.
    numbers : tuple of int
        Numbers of base tiles.
    """

    dataset: EmbeddingDataset
    numbers: tuple[int, ...]

    @property
    def drawn_from(self) -> npt.NDArray[np.int64]:
        """Numbers of all tiles that may be read for these: they, and their views where the dataset draws them."""
        numbers, store = np.asarray(self.numbers, dtype=np.int64), self.dataset.store
        if not self.dataset.views:
            return numbers
        committed = np.flatnonzero(store.committed)
        return np.asarray(committed[np.isin(store.base_of(committed), numbers)])


@dataclass(frozen=True)
class _Asked:
    """Some tiles of one store: their embeddings and first prompts, and what is true of them at tile px.

    ``truths`` has one entry for each query, in order: its tile as seen, its mask and where it counts.
    """

    embeddings: Tensor
    prompts: Prompts
    truths: list[tuple[Tile, npt.NDArray[np.bool_], npt.NDArray[np.bool_] | None]]


def measure(
    model: nn.Module,
    held: Sequence[Held],
    device: torch.device,
    thresholds: npt.NDArray[np.float64] = THRESHOLDS,
    *,
    batch: int | None = None,
    ranks: Sharers | None = None,
    threads: int = 1,
) -> ThresholdCounts:
    """Ask the decoder for every object of the held-out tiles and count pixels at native resolution.

    Parameters
    ----------
    model : nn.Module
        Called as a decoder. Put into evaluation mode and back into the mode it was in.
    held : sequence of Held
        One entry per store; ``iterative`` prompts are asked by their first point or box. After a single point
        the likeliest of three masks counts, else the single one.
    device : torch.device
        Where the model is.
    thresholds : ndarray of float64
        Logits at which pixels are counted.
    batch : int, optional
        Tiles in one call; default: what suits the device.
    ranks : Sharers, optional
        Share the tiles; all of them get the sum.
    threads : int
        Read and ask ahead.
    """
    counts = ThresholdCounts(thresholds)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for asked in _ahead(_shares(held, batch or TILES_PER_CALL[device.type], ranks), threads):
                _count(model, asked, device, counts)
    finally:
        model.train(was_training)
    if ranks is not None and ranks.world > 1:
        sums = counts.tensor.to(device)
        ranks.sum_([sums])
        counts.replace(sums)
    return counts


def _shares(
    held: Sequence[Held], batch: int, ranks: Sharers | None
) -> Iterator[tuple[EmbeddingDataset, tuple[int, ...]]]:
    """This process's tiles of each store, so many at a time."""
    rank, world = (0, 1) if ranks is None else (ranks.rank, ranks.world)
    for part in held:
        own = part.numbers[rank::world]
        for start in range(0, len(own), batch):
            yield part.dataset, own[start : start + batch]


def _ahead(shares: Iterable[tuple[EmbeddingDataset, tuple[int, ...]]], threads: int) -> Iterator[_Asked]:
    """The tiles of each share, read and asked while those before are decoded."""
    readers: dict[int, EmbeddingReader] = {}
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="embedcache-validation") as pool:
        pending: list[Future[_Asked]] = []
        try:
            for dataset, numbers in shares:
                if id(dataset) not in readers:
                    readers[id(dataset)] = dataset.store.reader()
                pending.append(pool.submit(_asked, dataset, readers[id(dataset)], numbers))
                if len(pending) > max(1, threads):
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for reader in readers.values():
                reader.close()


def _asked(dataset: EmbeddingDataset, reader: EmbeddingReader, numbers: tuple[int, ...]) -> _Asked:
    asked = [dataset.question_and_objects(number, VALIDATION_EPOCH) for number in numbers]
    questions = [question for question, _, _ in asked]
    read = reader.read if dataset.store.form == INT8 else reader.read_half
    embeddings = read([question.number for question in questions])
    return _Asked(
        embeddings,
        collate_questions(questions, embeddings).prompts,
        [
            (question.tile, thing.mask(), supervised)
            for question, things, supervised in asked
            for thing in things
        ],
    )


def _count(model: nn.Module, asked: _Asked, device: torch.device, counts: ThresholdCounts) -> None:
    prompts = asked.prompts.to(device)
    found = answers(model, asked.embeddings.to(device), prompts)
    for logits, (tile, mask, supervised) in zip(found, asked.truths, strict=True):
        counted = np.ones_like(mask) if supervised is None else np.ascontiguousarray(supervised)
        counts.add(
            upscale_logits(logits, tile),
            torch.from_numpy(np.ascontiguousarray(mask)).to(device),
            torch.from_numpy(counted).to(device),
        )


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
