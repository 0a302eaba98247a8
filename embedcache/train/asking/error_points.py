"""Turns a wrong answer into the next point of each query: a cell where it is wrong, with the truth's sign.

Everything stays on the device, and nothing is waited for. The draws come with the question, so the same draw
gives the same cell on any device and in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedcache.geometry import IMAGE_SIZE, LOW_RES_SIZE
from embedcache.sam.prompts import PAD_LABEL

_CELL = IMAGE_SIZE // LOW_RES_SIZE


def draw_error_points(
    answer: Tensor, targets: Tensor, weights: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """One point for each query, uniformly among the cells where its answer is wrong and counted.

    Where nothing is wrong it confirms: any counted cell. Where nothing counts it is SAM's "no point", in the
    first cell.

    Parameters
    ----------
    answer : (Q, 256, 256)
        Logits; above zero is inside.
    targets : uint8 (Q, 256, 256)
        1 is inside, else 0.
    weights : uint8 (Q, 256, 256)
        1 counts, else 0.
    draws : float64 (Q,)
        In [0, 1); of n such cells, row by row, number ``floor(draw × n)`` is taken.

    Returns
    -------
    coords : float32 (Q, 1, 2)
        (x, y) of the cells' centres, pixels of the 1024 frame.
    labels : int32 (Q, 1)
        1 where the truth is inside (a miss), 0 where it is not (a false alarm), −1 where nothing counts.
    """
    wrong = ((answer > 0).view(torch.uint8) ^ targets) & weights
    misses, counted = _in_rows(wrong), _in_rows(weights)
    some = misses.any(dim=1, keepdim=True)
    in_rows = torch.where(some, misses, counted)
    ends = in_rows.cumsum(dim=1)
    total = ends[:, -1:]
    place = torch.minimum((draws[:, None] * total).floor().long(), total - 1) + 1  # counted from 1
    y = torch.searchsorted(ends, place).clamp(max=LOW_RES_SIZE - 1)
    before = (ends - in_rows).gather(1, y)
    row = torch.where(some, _row(wrong, y), _row(weights, y))
    x = torch.searchsorted(row.cumsum(dim=1), place - before).clamp(max=LOW_RES_SIZE - 1)
    coords = torch.stack([x, y], dim=-1).float() * _CELL + (_CELL - 1) / 2
    labels = _row(targets, y).gather(1, x).to(torch.int32)
    return coords, torch.where(total > 0, labels, PAD_LABEL)


def _in_rows(cells: Tensor) -> Tensor:
    """How many cells of each row are 1: uint8 (Q, 256, 256) to int64 (Q, 256); eight are added at a time."""
    eights = (
        cells.contiguous().view(torch.int64).sum(dim=2, keepdim=True)
    )  # at most 32 in each of eight bytes
    return eights.view(torch.uint8).sum(dim=2)


def _row(cells: Tensor, y: Tensor) -> Tensor:
    """One row of each query: (Q, 256, 256) and (Q, 1) to (Q, 256)."""
    return cells.gather(1, y[:, :, None].expand(-1, 1, LOW_RES_SIZE))[:, 0]
