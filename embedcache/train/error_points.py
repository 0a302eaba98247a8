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
    targets : (Q, 256, 256)
        Above zero is inside.
    weights : (Q, 256, 256)
        Above zero counts.
    draws : float64 (Q,)
        In [0, 1); of n such cells, row by row, number ``floor(draw × n)`` is taken.

    Returns
    -------
    coords : float32 (Q, 1, 2)
        (x, y) of the cells' centres, pixels of the 1024 frame.
    labels : int32 (Q, 1)
        1 where the truth is inside (a miss), 0 where it is not (a false alarm), −1 where nothing counts.
    """
    counted, inside = weights > 0, targets > 0
    wrong = ((answer > 0) != inside) & counted
    some = wrong.flatten(1).any(dim=1)
    y, x, found = _nth_cell(torch.where(some[:, None, None], wrong, counted), draws)
    coords = torch.stack([x, y], dim=-1)[:, None].float() * _CELL + (_CELL - 1) / 2
    place = (y * inside.shape[2] + x)[:, None]
    labels = inside.flatten(1).gather(1, place).to(torch.int32)
    return coords, torch.where(found[:, None], labels, PAD_LABEL)


def _nth_cell(cells: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column of the drawn cell of each query, and whether there is any; the rows are counted first."""
    in_rows = cells.sum(dim=2, dtype=torch.int32)
    ends = in_rows.cumsum(dim=1)
    total = ends[:, -1]
    place = torch.minimum((draws * total).floor().to(ends.dtype), total - 1)[:, None] + 1  # counted from 1
    y = torch.searchsorted(ends, place).clamp(max=cells.shape[1] - 1)
    before = (ends - in_rows).gather(1, y)
    row = cells.gather(1, y[:, :, None].expand(-1, -1, cells.shape[2]))[:, 0]
    x = torch.searchsorted(row.cumsum(dim=1), place - before).clamp(max=cells.shape[2] - 1)
    return y[:, 0], x[:, 0], total > 0
