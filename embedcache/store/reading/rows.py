"""Turns stored embeddings into the rows of a batch tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import InputError
from embedcache.store.shards.scales import CHANNELS

_CHANNELS_AT_ONCE = 8
"""Of 4,096 values each: 32,768, above which torch divides a copy among threads."""


def put(row: Tensor, stored: Tensor, scales: npt.NDArray[np.float32] | None) -> None:
    """Make one stored embedding the floats of a row, a few channels at a time.

    torch does so little at once without its other threads. Waiting for these costs more than they bring, and ten
    times as much when the processor has other work.
    """
    parts = CHANNELS if row.device.type != "cpu" else _CHANNELS_AT_ONCE
    factors = None if scales is None else torch.from_numpy(scales).to(row.device)[:, None, None]
    for at, (floats, values) in enumerate(
        zip(torch.split(row, parts), torch.split(stored, parts), strict=True)
    ):
        floats.copy_(values)
        if factors is not None:
            floats.mul_(factors[at * parts : (at + 1) * parts])


def bytes_of_rows(embeddings: Tensor) -> list[memoryview]:
    """The bytes of each embedding of a batch, to read into."""
    rows = embeddings.view(torch.uint8).flatten(1).numpy()
    return [memoryview(row) for row in rows]


def check_out(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse a tensor into which such a batch cannot be read: :class:`InputError`."""
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise InputError(f"out has shape {tuple(out.shape)} and {out.dtype}; expected {shape} and {dtype}.")
    if dtype != torch.float32 and not (out.is_contiguous() and out.device.type == "cpu"):
        raise InputError("out must be a contiguous tensor in main memory.")
