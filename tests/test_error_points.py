"""The next point: where the last answer is wrong and counted, with the truth's sign, the same on any device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.train.asking.error_points import draw_error_points


def case(seed: int, queries: int, share: float) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def some(part: float) -> torch.Tensor:
        return (torch.rand(queries, 256, 256, generator=generator) < part).to(torch.uint8)

    targets, weights = some(0.3), some(0.9)
    flipped = some(share)
    answer = torch.where((targets ^ flipped) > 0, 1.0, -1.0) * torch.rand(
        queries, 256, 256, generator=generator
    )
    return answer, targets, weights, torch.rand(queries, generator=generator, dtype=torch.float64)


def cell_of(coords: torch.Tensor) -> tuple[int, int]:
    x, y = ((coords[0] - 1.5) / 4).tolist()
    assert x == int(x)
    assert y == int(y)
    return int(y), int(x)


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.0001, 0.01, 0.5]))
@settings(max_examples=25, deadline=None)
def test_each_point_is_the_drawn_one_of_the_wrong_cells_with_the_truths_sign(
    seed: int, queries: int, share: float
) -> None:
    answer, targets, weights, draws = case(seed, queries, share)
    coords, labels = draw_error_points(answer, targets, weights, draws)
    assert coords.shape == (queries, 1, 2)
    assert labels.shape == (queries, 1)
    assert labels.dtype == torch.int32
    wrong = ((answer > 0) != (targets > 0)) & (weights > 0)
    for query in range(queries):
        y, x = cell_of(coords[query])
        cells = np.flatnonzero(wrong[query].numpy())
        if len(cells) == 0:
            cells = np.flatnonzero(weights[query].numpy())
        assert y * 256 + x == cells[int(float(draws[query]) * len(cells))]
        assert labels[query, 0] == targets[query, y, x]


def test_where_nothing_is_wrong_a_point_confirms_and_where_nothing_counts_there_is_none() -> None:
    targets = torch.zeros(2, 256, 256, dtype=torch.uint8)
    targets[:, 10:20, 30:40] = 1
    weights = torch.zeros_like(targets)
    weights[0, 12:14, 35:50] = 1
    right = torch.where(targets > 0, 5.0, -5.0)
    for draw in (0.0, 0.5, 1 - 2**-53):
        draws = torch.full((2,), draw, dtype=torch.float64)
        coords, labels = draw_error_points(right, targets, weights, draws)
        y, x = cell_of(coords[0])
        assert weights[0, y, x]
        assert labels[0, 0] == targets[0, y, x]
        assert cell_of(coords[1]) == (0, 0)
        assert labels[1, 0] == -1


def test_the_same_draw_gives_the_same_cell_in_any_batch() -> None:
    answer, targets, weights, draws = case(5, 6, 0.02)
    coords, labels = draw_error_points(answer, targets, weights, draws)
    for query in range(6):
        one = [tensor[query : query + 1] for tensor in (answer, targets, weights, draws)]
        alone = draw_error_points(*one)
        assert torch.equal(alone[0][0], coords[query])
        assert torch.equal(alone[1][0], labels[query])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_draw_gives_the_same_cell_on_a_gpu_without_waiting_for_it() -> None:
    tensors = case(5, 6, 0.02)
    there = [tensor.to("cuda") for tensor in tensors]
    draw_error_points(*there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = draw_error_points(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for on_gpu, on_cpu in zip(found, draw_error_points(*tensors), strict=True):
        assert torch.equal(on_gpu.cpu(), on_cpu)


def test_an_answer_that_is_not_finite_breaks_nothing() -> None:
    answer, targets, weights, draws = case(1, 2, 0.1)
    answer[0] = torch.nan
    coords, _ = draw_error_points(answer, targets, weights, draws)
    assert torch.isfinite(coords).all()
