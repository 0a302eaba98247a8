"""A registered encoder works like SAM's own through every door: random weights, a checkpoint file, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import embedcache as ec
from embedcache.cli.app import run
from embedcache.errors import WeightsError
from embedcache.sam import Encoder, parts, random_weights, resolve_weights

CPU = torch.device("cpu")


class Patches(nn.Module):
    """One convolution a patch, a norm with running figures, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 256, 16, 16)
        self.norm = nn.BatchNorm2d(256)
        self.scale = nn.Parameter(torch.ones(256, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.embed(x)).relu() * self.scale


class Small(nn.Module):
    """Gives embeddings of another shape than SAM's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two encoders, known for one test only."""
    monkeypatch.setattr(parts, "_REGISTERED", {})
    ec.register_encoder("patches", Patches)
    ec.register_encoder("small", Small)


def image(value: float = 0.0) -> Tensor:
    ramp = torch.linspace(-1, 1, 1024)
    return (ramp[:, None] * ramp[None, :]).expand(1, 3, 1024, 1024) + value


def test_random_weights_give_sams_shape_and_differ_by_seed():
    first, again, other = (random_weights("patches", seed) for seed in (1, 1, 2))
    assert first.encoder_digest == again.encoder_digest != other.encoder_digest
    encoder = Encoder(first, device=CPU, precision="fp32")
    embeddings = encoder(image())
    assert embeddings.shape == (1, 256, 64, 64)
    assert embeddings.isfinite().all()
    assert encoder.numerics["attention"] == "own"


def test_the_decoder_of_a_seed_is_that_of_every_other_model():
    tiny, patches = random_weights("vit_tiny", 3), random_weights("patches", 3)
    assert all(torch.equal(tiny.state[name], value) for name, value in patches.decoder_state().items())


def test_a_checkpoint_file_gives_the_same_weights(tmp_path: Path):
    weights = random_weights("patches", 1)
    torch.save(weights.state, tmp_path / "mine.pth")
    found = resolve_weights("patches", str(tmp_path / "mine.pth"))
    assert (found.model_type, found.encoder_digest) == ("patches", weights.encoder_digest)
    assert torch.equal(
        Encoder(found, device=CPU, precision="fp32")(image()),
        Encoder(weights, device=CPU, precision="fp32")(image()),
    )


def test_a_checkpoint_of_another_model_is_refused_by_its_tensors(tmp_path: Path):
    torch.save(random_weights("vit_tiny", 0).state, tmp_path / "tiny.pth")
    with pytest.raises(WeightsError, match="looks like patches but lacks"):
        resolve_weights("patches", str(tmp_path / "tiny.pth"))
    torch.save(random_weights("patches", 0).state, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="holds no SAM image encoder"):
        resolve_weights("vit_b", str(tmp_path / "mine.pth"))


def test_without_published_weights_auto_says_what_to_give():
    with pytest.raises(WeightsError, match="published nowhere"):
        resolve_weights("patches")
    with pytest.raises(WeightsError, match="no model") as refusal:
        resolve_weights("pathces")
    assert "patches" in str(refusal.value)


@pytest.mark.parametrize("name", ["vit_b", "vit_tiny", "patches", "a-b", ""])
def test_a_taken_or_impossible_name_is_refused(name: str):
    with pytest.raises(WeightsError):
        ec.register_encoder(name, nn.Identity)


def test_registering_the_same_encoder_again_changes_nothing():
    ec.register_encoder("patches", Patches)
    assert parts.model_types()[-2:] == ("patches", "small")


def test_an_encoder_of_another_output_shape_is_refused_at_its_first_image():
    encoder = Encoder(random_weights("small", 0), device=CPU, precision="fp32")
    with pytest.raises(WeightsError, match=r"\(8, 64, 64\)"):
        encoder(image())


def test_the_command_encodes_and_resumes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8))
    store = tmp_path / "s.zarr"
    command = [
        "encode",
        "--volume",
        str(tmp_path / "scan.npy"),
        "--store",
        str(store),
        "--tile",
        "64",
        "--json",
    ]
    command += ["--model", "patches", "--checkpoint", "random:5", "--device", "cpu", "--precision", "fp32"]
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert run(command) == 0
    second = json.loads(capsys.readouterr().out)
    assert (first["tiles_encoded"], second["tiles_encoded"], second["tiles_reused"]) == (2, 0, 2)
    assert ec.open_store(store).spec.model_type == "patches"
    assert run(["status", str(store), "--json"]) == 0
