"""What the self-test promises: a right encoder passes, one that forgets something does not."""

import pytest
import torch

from embedcache.sam import Encoder, random_weights
from embedcache.sam.self_test import FLOAT32_LIMIT, self_test

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    return random_weights("vit_tiny", 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_encoder_of_these_weights_passes(weights, precision):
    said = []
    verdict = self_test(Encoder(weights, device=CPU, precision=precision), weights, said.append)
    assert verdict.passed
    assert 0 < verdict.error <= verdict.limit
    assert verdict.limit == FLOAT32_LIMIT or precision == "bf16"
    assert len(said) == 1


@pytest.mark.parametrize("forgotten", ["rel_pos_h", "rel_pos_w"])
def test_an_encoder_that_forgets_relative_positions_fails(weights, forgotten):
    state = {name: value * (forgotten not in name) for name, value in weights.state.items()}
    other = type(weights)("vit_tiny", weights.source, state, untrained=True)
    said = []
    verdict = self_test(Encoder(other, device=CPU, precision="fp32"), weights, said.append)
    assert not verdict.passed
    assert "not agree" in said[0]


def test_an_encoder_that_gives_no_numbers_fails(weights):
    state = {name: value * torch.nan for name, value in weights.state.items()}
    other = type(weights)("vit_tiny", weights.source, state, untrained=True)
    assert not self_test(Encoder(other, device=CPU, precision="fp32"), weights, lambda line: None).passed
