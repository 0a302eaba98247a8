"""The adapter: nothing at the start, learns, and stays with its decoder wherever that is kept."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedcache.errors import WeightsError
from embedcache.sam import Decoder, Prompts
from embedcache.train.adapter import AdaptedDecoder, Adapter, build_model


def embeddings_of(batch, seed=0):
    return torch.randn(batch, 256, 64, 64, generator=torch.Generator().manual_seed(seed))


def trained():
    """An adapted decoder whose adapter is no longer the identity."""
    model = AdaptedDecoder.around(Decoder.random(0))
    torch.nn.init.normal_(model.adapter.up.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return model


def test_at_the_start_it_changes_no_bit():
    embeddings, plain = embeddings_of(2), Decoder.random(0)
    adapted = AdaptedDecoder.around(plain)
    assert torch.equal(adapted.adapter(embeddings), embeddings)
    with torch.no_grad():
        have, want = (model(embeddings, Prompts.none(2)) for model in (adapted, plain))
    assert torch.equal(have.low_res_logits, want.low_res_logits)
    assert torch.equal(have.iou_predictions, want.iou_predictions)


def test_it_is_small_and_the_same_for_one_seed():
    assert sum(parameter.numel() for parameter in Adapter().parameters()) == 33_728
    assert torch.equal(Adapter(1).near.weight, Adapter(1).near.weight)
    assert not torch.equal(Adapter(1).near.weight, Adapter(2).near.weight)


def test_making_one_leaves_the_programs_random_numbers_alone():
    before = torch.get_rng_state()
    Adapter(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_of_it_learns():
    model = AdaptedDecoder.around(Decoder.random(0)).requires_grad_(False)
    model.adapter.requires_grad_(True)
    before = {name: value.clone() for name, value in model.adapter.state_dict().items()}
    embeddings = embeddings_of(1)
    target = (embeddings[:, :1] > 0).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        logits = model(embeddings, Prompts.none(1)).low_res_logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], value) for name, value in model.adapter.state_dict().items())


def test_its_names_stand_beside_sams_and_it_comes_back_from_a_file(tmp_path):
    model, embeddings = trained(), embeddings_of(1)
    names = set(model.state_dict())
    assert {name for name in names if not name.startswith("adapter.")} == set(Decoder.random(0).state_dict())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = build_model(load_file(tmp_path / "model.safetensors"))
    assert isinstance(again, AdaptedDecoder)
    with torch.no_grad():
        have, want = (one(embeddings, Prompts.none(1)).low_res_logits for one in (again, model))
        plain = model.decoder(embeddings, Prompts.none(1)).low_res_logits
    assert torch.equal(have, want)
    assert not torch.equal(plain, want)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_a_state_without_one_gives_a_plain_decoder():
    assert type(build_model(Decoder.random(0).state_dict())) is Decoder


def test_prepared_images_are_adapted_once():
    model, embeddings = trained(), embeddings_of(1)
    prompts = Prompts((2,), boxes=torch.tensor([[0.0, 0, 99, 99], [500, 500, 700, 900]]))
    with torch.no_grad():
        have, want = model(model.precompute(embeddings), prompts), model(embeddings, prompts)
    assert torch.allclose(have.low_res_logits, want.low_res_logits, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_half_an_adapter_is_refused(change):
    state = trained().state_dict()
    if change == "missing":
        del state["adapter.up.bias"]
    else:
        state["adapter.up.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError, match="no adapter"):
        build_model(state)
