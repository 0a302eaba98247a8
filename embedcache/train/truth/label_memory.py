"""Turns tiles into what their labels say of them, kept in memory so that nothing is read and numbered twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.geometry import Tile
from embedcache.train.questions.object_table import ObjectTable, least_pixels, object_table
from embedcache.train.truth.labels import Labels

REMEMBERED_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class LabelledTile:
    """What labels say of a tile as it lies, before any view.

    Parameters
    ----------
    table : ObjectTable
    supervised : bool (height, width) or None
        Where they count; None: everywhere.
    """

    table: ObjectTable
    supervised: npt.NDArray[np.bool_] | None

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.table.nbytes + (0 if self.supervised is None else self.supervised.nbytes)


class LabelMemory:
    """Labelled tiles, as many as fit into a budget: those unused for longest go. Threads may share it.

    Parameters
    ----------
    labels : Labels
    objects : "whole", "components" or "ids"
    budget : int
        Bytes.
    """

    def __init__(self, labels: Labels, objects: str, budget: int = REMEMBERED_BYTES) -> None:
        self._labels, self._objects, self._budget = labels, objects, budget
        self._kept: OrderedDict[Tile, LabelledTile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, tile: Tile) -> LabelledTile:
        """What labels say of a tile; tiles with the same labels on all planes are one."""
        key = self._labels.key(tile)
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        known = self._read(tile)  # outside of the lock, so that other threads go on
        with self._lock:
            if key not in self._kept:
                self._kept[key] = known
                self._bytes += known.nbytes
            while self._bytes > self._budget and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return known

    def _read(self, tile: Tile) -> LabelledTile:
        counted = self._labels.supervised(tile)
        supervised = None if counted.all() else counted
        crop, least = self._labels.crop(tile), least_pixels(tile)
        return LabelledTile(object_table(crop, supervised, self._objects, min_pixels=least), supervised)

    def __getstate__(self) -> dict[str, Any]:
        """What a DataLoader's worker gets: no lock, and nothing that it can read itself."""
        return {**self.__dict__, "_lock": None, "_kept": OrderedDict(), "_bytes": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
