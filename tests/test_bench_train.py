"""The bench of training: all ways take the same steps, in turns, and their figures stand beside each other."""

from __future__ import annotations

import json

import pytest
import torch

from embedcache.bench.step_process import ENCODERS, Steps, StepSettings
from embedcache.bench.training import bench_training
from embedcache.bench.waiting import share_of_waiting
from embedcache.cli.app import run
from embedcache.errors import ConfigError, EmbedcacheError, InputError
from embedcache.progress import Silent

TINY = ["bench", "train", "--model", "vit_tiny", "--device", "cpu", "--rounds", "1", "--threads", "1"]


def test_cached_steps_stand_beside_stock_with_ratio_memory_and_loss(capsys):
    assert run([*TINY, "--no-wait", "--json", "--case", "1x1", "--only", "stock", "--only", "cached"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["not_run"] == {}
    assert found["ratio"] == found["ratios"]["1x1 stock"]
    seconds = found["seconds"]["1x1"]
    assert found["ratio"] == pytest.approx(seconds["stock"] / seconds["cached"])
    assert found["ratio"] > 1
    assert found["saved_bytes"]["1x1"]["cached"] < 0.65 * found["saved_bytes"]["1x1"]["stock"]
    assert found["peak_memory_bytes"]["1x1"]["cached"] < found["peak_memory_bytes"]["1x1"]["stock"]
    assert found["loss_difference"] < 1e-5
    assert [len(one["losses"]) for one in found["steps"]] == [2, 2]
    assert {"torch", "date", "processor", "cores"} <= set(found["machine"])


def test_every_way_takes_the_same_steps(tmp_path):
    settings = {
        way: StepSettings(way, "vit_tiny", "random:0", "cpu", 1, 2, None, str(tmp_path / "embeddings.npy"))
        for way in sorted(ENCODERS, key="stock".__ne__)  # which leaves its embeddings for the others
    }
    losses = {}
    for way, one in settings.items():
        steps = Steps(one)
        losses[way] = [steps.take() for _ in range(2 if "cached" in way else 1)]
    assert losses["cached"] == pytest.approx(losses["stock_cached"], rel=1e-5)
    assert losses["cached"][1] != losses["cached"][0]
    assert losses["ours"] == pytest.approx(losses["stock"], rel=1e-5)
    assert losses["cached"][:1] == pytest.approx(losses["stock"], rel=1e-5)


def test_a_real_training_tells_how_long_it_waits():
    assert 0 <= share_of_waiting(torch.device("cpu"), Silent(), steps=2) <= 1


def test_a_way_that_cannot_start_is_named_and_holds_up_nobody(tmp_path):
    wishes = {"model": "vit_tiny", "device": "cpu", "wait": False, "rounds": 1}
    with pytest.raises(InputError, match="Not one way") as refusal:
        bench_training(
            Silent(), **wishes, checkpoint=str(tmp_path / "none.pth"), cases=("1x1",), only=("cached",)
        )
    assert "1x1 cached" in str(refusal.value.hint)
    assert "none.pth" in str(refusal.value.hint)


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"model": "vit_q"}, "vit_q"),
        ({"only": ("mine",)}, "--only mine"),
        ({"rounds": 0}, "--rounds 0"),
        ({"threads": 0}, "--threads 0"),
        ({"cases": ("8",)}, "--case 8"),
        ({"cases": ("0x1",)}, "--case 0x1"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_wrong_wishes_are_refused_by_name(wishes, named):
    with pytest.raises(EmbedcacheError, match=named) as refusal:
        bench_training(Silent(), **wishes)
    assert isinstance(refusal.value, ConfigError | InputError)
