"""Turns the scaled pixels of a few tiles into one batch on the encoder's device, in memory that is used again.

To a GPU the source's own small integers cross, out of pinned memory and on a stream of their own, so that the copy
and the normalisation run beside the encoder's work on the batch before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from embedcache.encode.stages import Stages
from embedcache.encode.tile_reader import ReadTile
from embedcache.geometry import IMAGE_SIZE
from embedcache.volume.normalise import normalise

_ALIGNED = 16
"""Bytes to a multiple of which images of another shape begin in pinned memory."""

_SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)


class Slot(Protocol):
    """Room for one batch."""

    def fill(self, tiles: Sequence[ReadTile]) -> None:
        """Put the input of each tile (none skipped, none failed) into a row."""

    def rows(self, count: int) -> Tensor:
        """The first rows, (count, 3, 1024, 1024) float32 on the device, for work on its current stream."""


def make_slots(device: torch.device, batch: int, stages: Stages) -> list[Slot]:
    """As many slots as keep the encoder busy: one at work, one ready, one being filled; on a GPU two at work."""
    if device.type != "cuda":
        return [_HostSlot(batch, stages) for _ in range(3)]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return [_CudaSlot(device, batch, stream, stages) for _ in range(4)]


class _HostSlot:
    """A batch in main memory."""

    def __init__(self, batch: int, stages: Stages) -> None:
        self._inputs, self._stages = torch.empty(batch, *_SHAPE), stages

    def fill(self, tiles: Sequence[ReadTile]) -> None:
        with self._stages.measure("preprocess"):
            for tile, row in zip(tiles, self._inputs, strict=False):
                normalise(_tensor(tile), tile.preprocess, row[None])

    def rows(self, count: int) -> Tensor:
        return self._inputs[:count]


class _CudaSlot:
    """A batch on a GPU, and the pinned memory through which it came."""

    def __init__(self, device: torch.device, batch: int, stream: torch.cuda.Stream, stages: Stages) -> None:
        self._inputs = torch.empty(batch, *_SHAPE, device=device)
        self._pinned = torch.empty(0, dtype=torch.uint8, pin_memory=True)
        self._stream, self._stages = stream, stages
        self._filled = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def fill(self, tiles: Sequence[ReadTile]) -> None:
        # The slot is free, so everything that was enqueued for its last batch has been done.
        with self._stages.measure("transfer"), torch.cuda.stream(self._stream):
            alike = (
                len({(tile.scaled.dtype, tile.scaled.shape) for tile in tiles if tile.scaled is not None})
                == 1
            )
            groups = [list(range(len(tiles)))] if alike else [[at] for at in range(len(tiles))]
            sources = [_tensor(tile) for tile in tiles]
            self._pin(sum(source.nbytes + _ALIGNED for source in sources))
            start = 0
            for group in groups:
                start = self._send([sources[at] for at in group], tiles[group[0]], group[0], start)
            self._filled.record(self._stream)

    def _pin(self, size: int) -> None:
        if self._pinned.nbytes < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _send(self, sources: list[Tensor], like: ReadTile, row: int, start: int) -> int:
        """Copy images of one shape and normalise them there; returns where the next ones may begin."""
        first = sources[0]
        end = start + len(sources) * first.nbytes
        waiting = self._pinned[start:end].view(first.dtype).view(len(sources), *first.shape)
        for source, place in zip(sources, waiting, strict=True):
            place.copy_(source)
        there = waiting.to(self._inputs.device, non_blocking=True)
        normalise(there, like.preprocess, self._inputs[row : row + len(sources)])
        return -(-end // _ALIGNED) * _ALIGNED

    def rows(self, count: int) -> Tensor:
        torch.cuda.current_stream(self._inputs.device).wait_event(self._filled)
        return self._inputs[:count]


def _tensor(tile: ReadTile) -> Tensor:
    """The scaled pixels as a tensor that shares their memory, where that may be written."""
    assert tile.scaled is not None
    return torch.from_numpy(np.require(tile.scaled, requirements=["C", "W"]))
