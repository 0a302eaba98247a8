"""The encoders' bench: everyone encodes the same, in turns, and what cannot run is named and holds nobody up."""

from __future__ import annotations

import json

import pytest
import torch

from embedcache.bench.ceiling import pipeline_ceiling
from embedcache.bench.child import Child
from embedcache.bench.encoders import bench_encoders
from embedcache.bench.process import Settings, images
from embedcache.bench.variants import VARIANTS, build, chosen
from embedcache.cli.app import run
from embedcache.errors import ConfigError, EmbedcacheError, InputError
from embedcache.progress import Silent
from embedcache.sam.weights import random_weights

TINY = ["bench", "encode", "--model", "vit_tiny", "--device", "cpu", "--rounds", "1", "--threads", "1"]


def test_ours_stands_beside_stock_with_its_ratio_error_and_memory(capsys):
    names = ["stock_fp32", "ours_fp32"]
    assert run([*TINY, "--tiles", "0", "--json", "--only", names[1], "--only", names[0]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["variants"]] == names
    assert (
        found["ratio"]
        == found["ratios"]["ours_fp32"]
        == pytest.approx(found["seconds"]["stock_fp32"] / found["seconds"]["ours_fp32"])
    )
    assert found["ratios"]["stock_fp32"] == 1.0
    stock, ours = found["variants"]
    assert stock["error"]["relative_l2"] == 0.0
    assert 0 < ours["error"]["relative_l2"] < 2e-6
    assert ours["numerics"]["compiled"] is False
    assert 2e8 < ours["peak_memory_bytes"] < stock["peak_memory_bytes"] < 4e9
    assert 2e8 < ours["start_memory_bytes"] < 2e9
    assert {"torch", "date", "processor", "cores"} <= set(found["machine"])


def test_the_ceiling_is_that_of_the_whole_pipeline_without_an_encoder(tmp_path):
    found = pipeline_ceiling(3, folder=str(tmp_path), device="cpu", threads=1)
    assert found["tiles"] == 3
    assert found["source_chunks"] == 64
    assert found["tiles_per_second"] == pytest.approx(3 / found["seconds"])
    assert found["run"]["tiles_failed"] == 0
    assert found["run"]["bytes_written"] > 3 * 2**21
    assert not list(tmp_path.iterdir()), "nothing stays"


def test_a_process_that_dies_or_cannot_start_is_named_and_ends_nothing_else(tmp_path):
    settings = Settings("stock_fp32", "vit_tiny", "random:0", "cpu", 1, 1, str(tmp_path / "reference.npy"))
    with Child(settings) as child:
        assert child.not_run is None
        child._process.kill()
        assert child.turn() is None
        assert "ended with -9" in str(child.not_run)
    with Child(Settings(**{**vars(settings), "checkpoint": str(tmp_path / "none.pth")})) as child:
        assert "none.pth" in str(child.not_run)
    assert not (tmp_path / "none.pth").exists()


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"model": "vit_q"}, "vit_q"),
        ({"only": ("ours",)}, "--only ours"),
        ({"rounds": 0}, "--rounds 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"only": ("fast_bf16",), "model": "vit_tiny"}, "segment_anything_fast is not installed"),
    ],
)
def test_wrong_wishes_are_refused_by_name(wishes, named):
    with pytest.raises(EmbedcacheError, match=named) as refusal:
        bench_encoders(Silent(), **wishes)
    assert isinstance(refusal.value, ConfigError | InputError)


@pytest.mark.parametrize("name", ["hf_fp32"])
def test_the_peers_encoder_computes_what_stock_computes_with_the_same_weights(name):
    """Otherwise its time would be that of another model."""
    pytest.importorskip("transformers")
    weights, inputs = random_weights("vit_tiny", 0), images(1)
    results = {
        variant.name: build(variant, weights, device=torch.device("cpu"), batch=1).run(inputs)
        for variant in chosen(("stock_fp32", name))
    }
    error = (results[name] - results["stock_fp32"]).norm() / results["stock_fp32"].norm()
    assert float(error) < 1e-5


def test_all_variants_take_turns_in_their_order_unless_some_are_named():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert [variant.name for variant in chosen(())] == names
