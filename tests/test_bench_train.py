"""The bench of training: all ways take the same steps, in turns, and their figures stand beside each other."""

from __future__ import annotations

import json

import pytest
import torch

from embedcache.bench import waiting
from embedcache.bench.step_process import ENCODERS, Steps, StepSettings
from embedcache.bench.training import bench_training
from embedcache.bench.waiting import shares_of_waiting
from embedcache.cli.app import run
from embedcache.errors import ConfigError, EmbedcacheError, InputError
from embedcache.progress import Silent
from embedcache.store import EmbeddingReader
from embedcache.train import train

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


def test_real_trainings_tell_how_long_they_wait_for_what_is_read_and_for_what_is_kept(monkeypatch):
    read, reads, of_training, said = EmbeddingReader.read_stored, [], [], []

    class Hears(Silent):
        def say(self, line):
            said.append(line)

    def counted(self, indices, out):
        reads.extend(indices)
        return read(self, indices, out)

    def trained(*arguments, **options):
        before = len(reads)
        run = train(*arguments, **options)
        of_training.append(len(reads) - before)
        return run

    monkeypatch.setattr(EmbeddingReader, "read_stored", counted)
    monkeypatch.setattr(waiting, "train", trained)
    monkeypatch.setattr(waiting, "TILES", 4)  # two of them train: one is held out, one lies between
    found = shares_of_waiting(torch.device("cpu"), Hears(), steps=6)
    assert list(found) == ["disk", "ram"]
    assert all(0 <= share <= 1 for share in found.values())
    assert of_training[0] >= 6 * 2 > of_training[1] >= 2
    assert any("read each time, from the page cache: " in line for line in said)


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
