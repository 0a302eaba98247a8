"""Turns an epoch's number and the shards of its tiles into the order in which the tiles are read.

A true permutation where reading anywhere is cheap. Where the tiles are more than memory keeps, a permutation
inside windows: some shards, drawn anew each epoch, are read together and left for good. The order depends on the
seed, the epoch and the shards only: not on ranks, threads or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError

SMALLEST_WINDOW = 8
"""Shards that are read together at least: fewer would leave an epoch hardly shuffled."""

WINDOW_SHARE = 4
"""A window takes at most one of so many parts of the free memory."""

CACHED_SHARE = 0.75
"""Share of the free memory up to which tiles count as kept by the system."""


NO_STORE = 2**32 - 1
"""Tells draws that concern all tiles from those of a tile, which have the index of its store in this place."""


@dataclass(frozen=True)
class Order:
    """How the tiles of each epoch are shuffled.

    Parameters
    ----------
    seed : int
    window : int or None
        Shards that are read together; None: all of them, a true permutation.

    Raises
    ------
    ConfigError
        When one of them is out of range.
    """

    seed: int
    window: int | None

    def __post_init__(self) -> None:
        if self.seed < 0 or (self.window is not None and self.window < 1):
            raise ConfigError(
                f"an order has a seed from 0 and a window from 1 on; found {self.seed}, {self.window}."
            )

    def of_epoch(self, epoch: int, shards: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The places of an epoch in the order of reading.

        Parameters
        ----------
        epoch : int
        shards : ndarray of int64, shape (n,)
            A number for the shard of each place; those of different stores differ.

        Returns
        -------
        ndarray of int64, shape (n,)
            A permutation of ``range(n)``.
        """
        rng = np.random.default_rng([self.seed, epoch, NO_STORE, 1])
        if self.window is None:
            return rng.permutation(len(shards))
        _, shard_of = np.unique(shards, return_inverse=True)
        rank = rng.permutation(int(shard_of.max(initial=-1)) + 1)
        windows = rank[shard_of] // self.window
        shuffled = rng.permutation(len(shards))
        return shuffled[np.argsort(windows[shuffled], kind="stable")]

    def sentence(self) -> str:
        """The order in words, for people."""
        if self.window is None:
            return "Tiles are read in a new random order each epoch."
        return (
            f"Tiles are read in a new random order each epoch, {self.window} shards at a time, as they are more "
            "than memory keeps."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"seed": self.seed, "window": self.window}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Order:
        """The order that :meth:`to_dict` gave."""
        window = values["window"]
        return cls(int(values["seed"]), None if window is None else int(window))


def choose_order(seed: int, *, bytes_needed: int, ram_free: int, shard_bytes: int, resident: bool) -> Order:
    """A permutation when the tiles are resident or fit into the system's cache, else windows that fit.

    To be chosen once in a run, by one process: whoever goes on with it obeys, whatever memory there is then.

    Parameters
    ----------
    seed : int
    bytes_needed, ram_free : int
        Of all tiles, and of the memory that is free.
    shard_bytes : int
        Of one shard.
    resident : bool
        Whether the tiles are kept in memory anyway.
    """
    if resident or bytes_needed <= ram_free * CACHED_SHARE:
        return Order(seed, None)
    return Order(seed, max(SMALLEST_WINDOW, ram_free // WINDOW_SHARE // max(1, shard_bytes)))
