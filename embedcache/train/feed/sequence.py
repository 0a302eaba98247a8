"""Turns training tiles into the one endless sequence in which a run sees them, whoever reads it.

Position ``k`` depends on the seed, the tiles and the order only: not on ranks, threads, batches or memory. So a
run goes on anywhere, and several processes take parts of one sequence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, LabelError
from embedcache.store.reading.order import NO_STORE, Order

Numbers = npt.NDArray[np.int64]

_KEPT_EPOCHS = 3


@dataclass(frozen=True)
class Place:
    """One image of the sequence.

    Parameters
    ----------
    epoch : int
    store : int
        Index of its store in the run.
    base : int
        The base tile's number.
    number : int
        The tile that is read in this epoch: a view of the base.
    """

    epoch: int
    store: int
    base: int
    number: int


class TileSequence:
    """The tiles of all epochs, one after the other.

    Each epoch holds all tiles with positives and as many of those without, drawn anew: tiles without anything
    teach what is not foreground, but in rare ink they would be nearly all there is.

    Parameters
    ----------
    stores, bases : ndarray of int64, shape (n,)
        Index of the store, and number in it, of each training tile.
    positive : ndarray of bool, shape (n,)
        Whether it holds anything.
    order : Order
    drawn : callable
        Of (store, base, epoch): the number that is read.
    shard : callable
        Of (stores, numbers), arrays: a number for the shard of each, those of different stores differ.

    Raises
    ------
    LabelError
        When no tile holds anything.
    """

    def __init__(
        self,
        stores: Numbers,
        bases: Numbers,
        positive: npt.NDArray[np.bool_],
        order: Order,
        *,
        drawn: Callable[[int, int, int], int],
        shard: Callable[[Numbers, Numbers], Numbers],
    ) -> None:
        self._stores, self._bases, self._order = stores, bases, order
        self._drawn, self._shard = drawn, shard
        self._positive = np.flatnonzero(positive)
        self._empty = np.flatnonzero(~positive)
        if not len(self._positive):
            raise LabelError("No training tile holds anything to learn.")
        self.epoch_length = len(self._positive) + min(len(self._empty), len(self._positive))
        self._epochs: dict[int, tuple[Numbers, Numbers]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, position: int) -> Place:
        """The image at a position, counted from 0."""
        epoch, at = divmod(position, self.epoch_length)
        places, numbers = self._of_epoch(epoch)
        place = places[at]
        return Place(epoch, int(self._stores[place]), int(self._bases[place]), int(numbers[at]))

    def prepare(self, epoch: int) -> None:
        """Make the order of an epoch before it begins, in another thread."""
        self._of_epoch(epoch)

    def _of_epoch(self, epoch: int) -> tuple[Numbers, Numbers]:
        """Places of an epoch in their order, and the numbers that are read there."""
        found = self._epochs.get(epoch)
        if found is not None:
            return found
        with self._lock:
            if epoch not in self._epochs:
                while len(self._epochs) >= _KEPT_EPOCHS:
                    del self._epochs[next(iter(self._epochs))]
                self._epochs[epoch] = self._order_of(epoch)
            return self._epochs[epoch]

    def _order_of(self, epoch: int) -> tuple[Numbers, Numbers]:
        rng = np.random.default_rng([self._order.seed, epoch, NO_STORE, 0])
        empty = rng.permutation(self._empty)[: self.epoch_length - len(self._positive)]
        places = np.sort(np.concatenate([self._positive, empty]))
        stores, bases = self._stores[places], self._bases[places]
        drawn = [self._drawn(int(s), int(b), epoch) for s, b in zip(stores, bases, strict=True)]
        numbers = np.array(drawn, dtype=np.int64)
        order = self._order.of_epoch(epoch, self._shard(stores, numbers))
        return places[order], numbers[order]


def share(batch_size: int, rank: int, world: int) -> range:
    """The images of a batch that a process takes: one part each, in order, as equal as can be.

    Raises
    ------
    ConfigError
        When there are more processes than images, or no such process.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"process {rank} of {world}: processes are counted from 0.")
    if world > batch_size:
        raise ConfigError(
            f"{world} processes cannot share a batch of {batch_size}: each needs an image.",
            hint=f"Give --batch-size {world} or more, or start fewer processes.",
        )
    return range(batch_size * rank // world, batch_size * (rank + 1) // world)
