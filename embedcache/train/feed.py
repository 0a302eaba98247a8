"""Turns training tiles into an endless, repeatable stream of batches, read one ahead of the training step.

Batch ``k`` depends on the seed, the tiles and ``k`` only, so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from embedcache.train.dataset import EmbeddingDataset, TrainingItem
from embedcache.train.validation import Held

AHEAD = 2


class Feed:
    """Training items of one or several stores, a batch at a time.

    Each epoch holds all tiles with positives and as many of those without, drawn anew: tiles without anything
    teach what is not foreground, but in rare ink they would be nearly all there is.

    Parameters
    ----------
    parts : sequence of Held
        Training tiles of each store.
    batch_size : int
    seed : int
    """

    def __init__(self, parts: Sequence[Held], batch_size: int, seed: int) -> None:
        self._datasets: list[EmbeddingDataset] = [part.dataset for part in parts]
        self._readers = [dataset.store.reader() for dataset in self._datasets]
        self._batch_size, self._seed = batch_size, seed
        places = [(index, number) for index, part in enumerate(parts) for number in part.numbers]
        counts = np.concatenate(
            [part.dataset.labels.positive(part.dataset.store, part.numbers) for part in parts]
        )
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        self._positive = np.flatnonzero(counts > 0)
        self._empty = np.flatnonzero(counts == 0)
        self.epoch_length = len(self._positive) + min(len(self._empty), len(self._positive))
        self.waited = 0.0
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedcache-feed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def epoch_of(self, step: int) -> int:
        """The epoch in which batch ``step`` begins."""
        return step * self._batch_size // self.epoch_length

    def batches(self, first: int, last: int) -> Iterator[list[TrainingItem]]:
        """Batches ``first`` to ``last - 1``; the time spent waiting for them is added to ``waited``."""
        pending: list[Future[list[TrainingItem]]] = []
        upcoming = first
        for _ in range(first, last):
            while upcoming < last and len(pending) < AHEAD:
                pending.append(self._pool.submit(self._load, upcoming))
                upcoming += 1
            started = time.perf_counter()
            items = pending.pop(0).result()
            self.waited += time.perf_counter() - started
            yield items

    def _load(self, step: int) -> list[TrainingItem]:
        items = []
        for position in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, index = divmod(position, self.epoch_length)
            owner, number = (int(value) for value in self._places[self._order(epoch)[index]])
            embedding = self._readers[owner].read([number])[0]
            items.append(self._datasets[owner].item_with(number, epoch, embedding))
        return items

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            rng = np.random.default_rng([self._seed, epoch])
            empty = rng.permutation(self._empty)[: self.epoch_length - len(self._positive)]
            self._orders = {epoch: rng.permutation(np.concatenate([self._positive, empty]))}
        return self._orders[epoch]
