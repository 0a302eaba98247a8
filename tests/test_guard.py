"""Divergence: what is not finite never touches the weights; what grows without end is stopped; tiles are named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from embedcache.errors import ConfigError
from embedcache.train.stepping.guard import FEW, NAMED, SPAN, Guard, diverged, is_good


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)]
)
def test_a_loss_or_gradient_that_is_not_finite_is_bad(loss: float, norm: float) -> None:
    assert not is_good(torch.tensor(loss), torch.tensor(norm))
    assert is_good(torch.tensor(0.0), torch.tensor(1e30))
    fault = Guard().fault(loss, norm)
    assert fault is not None
    assert ("loss" in fault) == (not math.isfinite(loss))


def spans(*means: float) -> list[str | None]:
    """Verdicts at the ends of spans with these mean losses."""
    guard = Guard()
    return [[guard.fault(mean, 1.0) for _ in range(SPAN)][-1] for mean in means]


def test_a_mean_ten_times_the_best_and_beyond_the_first_is_divergence() -> None:
    assert spans(1.0, 0.5, 6.0)[-1] == "The mean loss of 50 steps is 6 after 0.5 at its best"


def test_a_noisy_or_a_hard_batch_is_not() -> None:
    assert spans(1.0, 0.5, 4.9, 0.1, 0.9) == [None] * 5
    guard = Guard()
    assert [guard.fault(9e4 if step == 7 else 1.0, 1.0) for step in range(SPAN)] == [None] * SPAN


def test_a_loss_beyond_all_bounds_is_seen_within_a_few_steps() -> None:
    guard = Guard()
    verdicts = [guard.fault(loss, 1.0) for loss in [1.0, *[5e8] * (FEW - 1)]]
    assert verdicts[:-1] == [None] * (FEW - 1)
    assert verdicts[-1] == "The mean loss of 10 steps is 4.5e+08"


def test_it_goes_on_where_it_was() -> None:
    losses = [1.0] * SPAN + [0.1] * SPAN + [9.0] * SPAN
    whole, cut = Guard(), Guard()
    for step, loss in enumerate(losses):
        cut = Guard.from_list(json.loads(json.dumps(cut.to_list())))
        assert whole.fault(loss, 1.0) == cut.fault(loss, 1.0), step
    assert whole == cut
    assert Guard.from_list([]) == Guard()


def test_the_error_names_step_rate_and_tiles_but_not_a_thousand() -> None:
    tiles = [f"s.zarr tile {n}" for n in range(40)]
    error = diverged("The loss is not finite", step=3, lr=1e-3, peak=2e-3, tiles=tiles, kept=None)
    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert "step 4 (s.zarr tile 0, s.zarr tile 1" in error.message
    assert f"and {40 - NAMED} more" in error.message
    assert "0.001" in error.message
    assert error.hint is not None
    assert "0.0002" in error.hint
    assert "--init" not in error.hint
    kept = diverged(
        "The loss is not finite", step=3, lr=1e-3, peak=2e-3, tiles=tiles, kept=Path("run/best.safetensors")
    )
    assert "run/best.safetensors" in kept.message
    assert "--init run/best.safetensors" in str(kept.hint)
