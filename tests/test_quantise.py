"""Eight bits a value: how far off they may be, and what they do with zeros, tiny and broken values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedcache.store.shards.quantise import LEVELS, dequantise, quantise

TINY = float(torch.finfo(torch.float32).tiny)

finite = st.floats(-(2.0**120), 2.0**120, width=32)


@given(hnp.arrays(np.float32, (2, 3, 4, 4), elements=finite))
@settings(max_examples=100, deadline=None)
def test_no_value_is_off_by_more_than_half_a_step(values: np.ndarray) -> None:
    exact = torch.from_numpy(values)
    stored, scales = quantise(exact)
    error = (dequantise(stored, scales).double() - exact.double()).abs()
    assert stored.dtype == torch.int8
    assert int(stored.min()) >= -LEVELS
    assert torch.equal(scales, torch.where(exact.abs().amax((-2, -1)) / LEVELS < TINY, 0.0, scales))
    limit = torch.where(scales == 0, LEVELS * TINY, scales.double() * (0.5 + 1e-4))
    assert bool((error <= limit[..., None, None]).all())


@given(hnp.arrays(np.int8, (1, 2, 4, 4), elements=st.integers(-LEVELS, LEVELS)), st.integers(-20, 20))
@settings(max_examples=50, deadline=None)
def test_what_fits_is_kept_exactly(steps: np.ndarray, power: int) -> None:
    steps[..., 0, 0] = LEVELS
    exact = torch.from_numpy(steps).float() * 2.0**power
    stored, scales = quantise(exact)
    assert np.array_equal(stored.numpy(), steps)
    assert torch.equal(dequantise(stored, scales), exact)


def test_halves_are_rounded_to_even() -> None:
    exact = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127.0]).reshape(1, 1, 2, 4)
    assert quantise(exact)[0].flatten().tolist() == [127, 0, 2, 2, 0, -2, -126, -127]


def test_zeros_and_values_too_small_for_a_scale_are_zeros() -> None:
    for value in (0.0, 1e-45, TINY, -TINY):
        stored, scales = quantise(torch.full((1, 2, 4, 4), value))
        assert not stored.any()
        assert scales.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_shows_in_its_channels_scale_alone(value: float) -> None:
    exact = torch.ones(1, 3, 4, 4)
    exact[0, 1, 2, 3] = value
    stored, scales = quantise(exact)
    assert torch.isfinite(scales).tolist() == [[True, False, True]]
    assert not stored[0, 1].any()


def test_half_and_brain_floats_are_quantised_as_the_floats_they_are() -> None:
    exact = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        given = exact.to(dtype)
        for one, other in zip(quantise(given), quantise(given.float()), strict=True):
            assert torch.equal(one, other)


def test_a_scale_is_the_quotient_correctly_rounded() -> None:
    largest = np.random.default_rng(0).uniform(0, 20, 5000).astype(np.float32)
    _, scales = quantise(torch.from_numpy(largest)[:, None, None, None])
    assert np.array_equal(scales[:, 0].numpy(), (largest.astype(np.float64) / LEVELS).astype(np.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits() -> None:
    exact = torch.randn(4, 256, 64, 64, generator=torch.Generator().manual_seed(1)) * 10
    for one, other in zip(quantise(exact), quantise(exact.cuda()), strict=True):
        assert torch.equal(one, other.cpu())
