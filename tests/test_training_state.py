"""What a training goes on from: all of it comes back, and a flipped bit in it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedcache.errors import CorruptionError, InputError
from embedcache.sam.decoder import Decoder
from embedcache.train.adapter import AdaptedDecoder
from embedcache.train.stepping.state import Standing, load_state, save_state

STANDING = Standing(7, 14, 0.5, 3, 1, 2.5, {"loss": 0.1}, [0.5, 3, None, None, 0.5])


def optimised() -> tuple[Decoder, torch.optim.Optimizer]:
    """A decoder after one step, and its optimiser."""
    decoder = Decoder.random(1)
    optimizer = torch.optim.AdamW(decoder.parameters())
    sum(parameter.square().sum() for parameter in decoder.parameters()).backward()
    optimizer.step()
    return decoder, optimizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder, torch.optim.Optimizer]:
    path = tmp_path_factory.mktemp("state") / "resume.safetensors"
    decoder, optimizer = optimised()
    save_state(path, decoder, optimizer, STANDING)
    return path, decoder, optimizer


def fresh() -> tuple[Decoder, torch.optim.Optimizer]:
    decoder = Decoder.random(2)
    return decoder, torch.optim.AdamW(decoder.parameters())


def test_decoder_optimiser_and_standing_come_back_bit_for_bit(saved):
    path, decoder, optimizer = saved
    other, other_optimizer = fresh()
    assert load_state(path, other, other_optimizer) == STANDING
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), other.parameters(), strict=True))
    before, after = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(slots["exp_avg"], after[index]["exp_avg"]) for index, slots in before.items())


@pytest.mark.parametrize("offset", [40, 3_000, 10_000_000, -5])
def test_a_flipped_bit_is_refused(saved, tmp_path, offset):
    data = bytearray(saved[0].read_bytes())
    data[offset] ^= 1
    (tmp_path / "resume.safetensors").write_bytes(data)
    with pytest.raises(CorruptionError, match=r"resume\.safetensors is damaged.* cannot go on") as refusal:
        load_state(tmp_path / "resume.safetensors", *fresh())
    assert refusal.value.exit_code == 4
    assert "best.safetensors" in str(refusal.value)


def test_a_file_that_is_cut_short_is_refused(saved, tmp_path):
    (tmp_path / "resume.safetensors").write_bytes(saved[0].read_bytes()[:100_000])
    with pytest.raises(CorruptionError, match="cannot go on"):
        load_state(tmp_path / "resume.safetensors", *fresh())


def test_a_whole_file_of_another_training_is_wrong_input_not_damage(saved):
    decoder = AdaptedDecoder.around(Decoder.random(2), seed=0)
    with pytest.raises(InputError, match="of another training") as refusal:
        load_state(saved[0], decoder, torch.optim.AdamW(decoder.parameters()))
    assert refusal.value.exit_code == 2
