"""Turns labels into labels whose pixels are read from their files once, however many trainings ask for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.geometry import Tile
from embedcache.train.truth.labels import Labels

REMEMBERED_BYTES = 512 << 20
"""Label pixels that are kept; what goes beyond is read again each time."""


class RememberedLabels(Labels):
    """Labels whose crops are kept.

    Parameters
    ----------
    labels : Labels
        Opened.
    """

    def __init__(self, labels: Labels) -> None:
        self.__dict__.update(labels.__dict__)
        self._kept: dict[tuple[str, Tile], npt.NDArray[Any]] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._validating: Labels | None = None

    def validating(self) -> Labels:
        """As :meth:`Labels.validating`; remembered as well."""
        inner = super().validating()
        if inner is self:
            return self
        with self._lock:
            if self._validating is None:
                self._validating = RememberedLabels(inner)
            return self._validating

    def crop(self, tile: Tile) -> npt.NDArray[Any]:
        """As :meth:`Labels.crop`; not to be written to."""
        return self._once("labels", tile, super().crop)

    def supervised(self, tile: Tile) -> npt.NDArray[np.bool_]:
        """As :meth:`Labels.supervised`; not to be written to."""
        return self._once("supervision", tile, super().supervised)

    def _once(self, what: str, tile: Tile, read: Callable[[Tile], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if tile.plane not in self.planes:
            return read(tile)
        key = what, self.key(tile)
        known = self._kept.get(key)
        if known is not None:
            return known
        found = read(tile)
        found.flags.writeable = False
        with self._lock:
            if key not in self._kept and self._bytes + found.nbytes <= REMEMBERED_BYTES:
                self._kept[key] = found
                self._bytes += found.nbytes
        return found
