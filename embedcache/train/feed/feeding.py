"""Turns training tiles into the data of each step, on the device before the step asks for it.

Threads read embeddings and make up the questions of the tiles; one more puts them together and moves them to the
device. What comes depends on the seed, the tiles and the position in the sequence only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from embedcache.store.reading.gather import Gather, Slot
from embedcache.store.reading.order import choose_order
from embedcache.store.reading.tier import tier_for
from embedcache.train.asking.validation import Held
from embedcache.train.feed.feed_options import FeedOptions
from embedcache.train.feed.ready import Ready
from embedcache.train.feed.sequence import Numbers, Place, TileSequence, share
from embedcache.train.questions.batch import Batch, StepData, TileKey, TileQuestion, collate_questions

__all__ = ["Feed", "FeedOptions"]


@dataclass(frozen=True, eq=False)
class _Pending:
    """A step on its way."""

    slot: Slot
    images: list[Future[TileQuestion]]
    ready: Future[Ready]


class Feed:
    """The steps of a training.

    Parameters
    ----------
    parts : sequence of Held
        Training tiles of each store.
    options : FeedOptions
    device : torch.device
        Where the data is wanted.
    say : callable
        Told where embeddings are kept, and how they are shuffled.

    Attributes
    ----------
    epoch_length : int
        Images of an epoch.
    waited : float
        Seconds that steps had to wait for their data.
    images_per_call : int
        May be changed between two calls of :meth:`steps`.
    residence : Residence
    order : Order

    Raises
    ------
    ConfigError, LabelError
    """

    def __init__(
        self,
        parts: Sequence[Held],
        options: FeedOptions,
        device: torch.device,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._datasets = [part.dataset for part in parts]
        self._stores = [dataset.store for dataset in self._datasets]
        self._options, self._device = options, device
        self._share = share(options.batch_size, options.rank, options.world)
        tiles = [part.drawn_from for part in parts]
        tier = tier_for(
            self._stores, tiles, device, wish=options.resident, processes_here=options.processes_here
        )
        self.residence = tier.residence
        self.order = options.order or choose_order(
            options.seed,
            bytes_needed=sum(len(n) * s.form.payload_bytes for n, s in zip(tiles, self._stores, strict=True)),
            ram_free=self.residence.ram_free,
            shard_bytes=max(store.form.payload_bytes * store.shard_tiles for store in self._stores),
            resident=self.residence.where != "disk",
        )
        self._sequence = self._make_sequence(parts)
        self._gather = Gather(self._stores, tier, device, check=options.check)
        self.epoch_length = self._sequence.epoch_length
        self.images_per_call = options.images_per_call
        self.waited, self._images, self._prepared = 0.0, 0, 0
        self._slots = [self._gather.slot(len(self._share)) for _ in range(options.ahead + 1)]
        self._stream = _stream(device)
        self._pool = ThreadPoolExecutor(options.readers, "embedcache-feed")
        self._mover = ThreadPoolExecutor(1, "embedcache-move")
        say(self.residence.sentence)
        say(self.order.sentence())

    def _make_sequence(self, parts: Sequence[Held]) -> TileSequence:
        counts = [part.dataset.labels.positive(part.dataset.store, part.numbers) for part in parts]
        first_shard = np.cumsum([0, *(store.n_shards for store in self._stores)])
        shard_tiles = np.array([store.shard_tiles for store in self._stores])

        def shard(stores: Numbers, numbers: Numbers) -> Numbers:
            return np.asarray(first_shard[stores] + numbers // shard_tiles[stores])

        return TileSequence(
            np.repeat(np.arange(len(parts)), [len(part.numbers) for part in parts]),
            np.concatenate([np.asarray(part.numbers, np.int64) for part in parts]),
            np.concatenate(counts) > 0,
            self.order,
            drawn=self._drawn,
            shard=shard,
        )

    def _drawn(self, store: int, base: int, epoch: int) -> int:
        dataset = self._datasets[store]
        return dataset.drawn(base, epoch) if dataset.views else base

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        for pool in (self._pool, self._mover):
            pool.shutdown(wait=True, cancel_futures=True)
        self._gather.close()

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on: the images that were handed out, and the order."""
        return {"images": self._images, "order": self.order.to_dict()}

    def name_of(self, key: TileKey) -> str:
        """A tile in words: its store, number and place."""
        store = next(data.store for data in self._datasets if data.store_index == key.store)
        return f"{store.path.name} {store.describe(key.number)}"

    def steps(self, first_image: int, last_step: int, *, first_step: int) -> Iterator[StepData]:
        """The steps ``first_step`` to ``last_step - 1``; the time spent waiting for them is added to ``waited``.

        Parameters
        ----------
        first_image : int
            Where in the sequence step ``first_step`` begins.

        Yields
        ------
        StepData
            Of this process; its tensors hold until the next one is asked for.

        Raises
        ------
        CorruptionError, MissingTilesError, StorageError
            When an embedding cannot be read as it was recorded.
        """
        pending: deque[_Pending] = deque()
        slots, upcoming = list(self._slots), first_step
        try:
            for step in range(first_step, last_step):
                asked = time.perf_counter()
                while upcoming < last_step and slots:
                    first = first_image + (upcoming - first_step) * self._options.batch_size
                    pending.append(self._begin(first, slots.pop()))
                    upcoming += 1
                ready = pending[0].ready.result()
                self.waited += time.perf_counter() - asked
                ready.hand_over(self._device)
                self._images = first_image + (step + 1 - first_step) * self._options.batch_size
                epoch = (self._images - self._options.batch_size) // self.epoch_length
                yield ready.step_data(step, epoch)
                slots.append(pending.popleft().slot)
        finally:
            _abandon(pending)

    def _begin(self, first: int, slot: Slot) -> _Pending:
        """Let the threads make a step ready, and the system read what comes after it."""
        places = [self._sequence[first + at] for at in self._share]
        next_epoch = places[-1].epoch + 1
        if next_epoch > self._prepared:  # made by the threads before it begins
            self._prepared = next_epoch
            self._pool.submit(self._sequence.prepare, next_epoch)
        later = [self._sequence[first + self._options.batch_size + at] for at in self._share]
        self._pool.submit(self._gather.prefetch, [(place.store, place.number) for place in later])
        images = [self._pool.submit(self._image, place, slot, at) for at, place in enumerate(places)]
        return _Pending(slot, images, self._mover.submit(self._finish, slot, images))

    def _image(self, place: Place, slot: Slot, at: int) -> TileQuestion:
        self._gather.fill(slot, at, place.store, place.number)
        return self._datasets[place.store].question(place.base, place.epoch)

    def _finish(self, slot: Slot, images: Sequence[Future[TileQuestion]]) -> Ready:
        """A step's batches, one a call, on the device; the slot may be filled again once its step is done."""
        questions = [image.result() for image in images]
        size = self.images_per_call
        asked = [(at, questions[at : at + size]) for at in range(0, len(questions), size)]
        if self._stream is None:
            return Ready([self._call(slot, *call) for call in asked], None)
        with torch.cuda.stream(self._stream):
            calls = [self._call(slot, *call) for call in asked]
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        copied.synchronize()
        return Ready(calls, copied)

    def _call(self, slot: Slot, first: int, questions: Sequence[TileQuestion]) -> Batch:
        embeddings = self._gather.embeddings(slot, first, first + len(questions))
        if self._stream is None:
            return collate_questions(questions, embeddings)
        rest = collate_questions(questions, torch.empty(0)).pin().to(self._device)
        return replace(rest, image_embeddings=embeddings)


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _abandon(pending: Iterable[_Pending]) -> None:
    """Let nobody write into the slots any more; what went wrong there is told when the step is asked for again."""
    futures: list[Future[Any]] = []
    for step in pending:
        futures += [*step.images, step.ready]
    wait([future for future in futures if not future.cancel()])
