"""The course of a training: how it diverges, learns by heart, is averaged, and ends early."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_stores import blob_labels, labelled_folder

from embedcache.errors import ConfigError, MismatchError
from embedcache.store import EmbeddingStore
from embedcache.train import Checkpoint, Run, train

LABELS = blob_labels(8, 64, 64)
QUICK = {"logger": "none", "batch_size": 1, "lr": 1e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("course"), LABELS)


@pytest.fixture(scope="module")
def store(folder: Path) -> EmbeddingStore:
    return EmbeddingStore.open(folder / "s.zarr")


def test_a_rate_that_diverges_stops_with_its_tiles_named_and_the_last_checkpoints_kept(
    folder: Path, store: EmbeddingStore
) -> None:
    options = {**QUICK, "val": "6:7", "steps": 100, "validate_every": 6, "warmup": 0, "clip": 1e9, "lr": 0.99}
    with pytest.raises(ConfigError, match=r"at step 10 \(s\.zarr tile \d .*learning rate of") as stop:
        train(store, folder / "l.npy", out=folder / "wild", **options)
    assert stop.value.exit_code == 2
    assert "0.099" in str(stop.value)
    assert Checkpoint.load(folder / "wild" / "last.safetensors").step == 6
    assert not Run(folder / "wild").finished
    with pytest.raises(MismatchError, match="lr"):
        train(store, folder / "l.npy", out=folder / "wild", resume=True, **(options | {"lr": 1e-3}))


def test_a_few_tiles_can_be_learned_by_heart(folder: Path, store: EmbeddingStore) -> None:
    run = train(
        store, folder / "l.npy", out=folder / "heart", overfit=2, **(QUICK | {"steps": 15, "batch_size": 2})
    )
    assert run.best > 0.95
    assert run.split["train"] == run.split["val"]
    assert "nothing about unseen tiles" in run.summary["split_rule"]
    assert Checkpoint.load(run.checkpoint).split["kind"] == "overfit"
    with pytest.raises(ConfigError, match="leave --val 6:7 out"):
        train(store, folder / "l.npy", out=folder / "no", overfit=2, val="6:7", **QUICK)


def test_the_average_is_what_is_validated_and_kept(folder: Path, store: EmbeddingStore) -> None:
    options = {**QUICK, "val": "6:7", "steps": 3, "lr": 1e-2}
    plain = train(store, folder / "l.npy", out=folder / "plain", **options)
    run = train(store, folder / "l.npy", out=folder / "ema", ema=0.99, **options)
    assert {row["weights"] for row in run.metrics if row["split"] == "val" and row["step"]} == {"ema"}
    kept, raw = Checkpoint.load(run.last), Checkpoint.load(plain.last)
    assert (kept.ema, raw.ema) == (0.99, 0.0)
    start = store.decoder_state()
    name = "mask_decoder.mask_tokens.weight"
    far, near = ((state[name] - start[name]).norm() for state in (raw.state, kept.state))
    assert 0 < near < far  # the average lags behind the weights, which are the same in both runs
    resumed = load_file(run.path / "resume.safetensors")
    assert torch.equal(resumed[f"decoder.{name}"], raw.state[name])
    assert torch.equal(resumed[f"average.{name}"], kept.state[name])


def test_a_run_that_stopped_early_stays_where_it_stopped(folder: Path, store: EmbeddingStore) -> None:
    options = {**QUICK, "val": "6:7", "steps": 4, "validate_every": 1, "patience": 1, "lr": 1e-9}
    run = train(store, folder / "l.npy", out=folder / "early", **options)
    assert run.summary["steps"] == 2  # the second validation is no better, and a third of the course is past
    assert run.summary["views"] == [0]
    kept = {name: (run.path / name).read_bytes() for name in ("metrics.jsonl", "last.safetensors")}
    (run.path / "summary.json").unlink()  # killed before it could say so
    again = train(store, folder / "l.npy", out=folder / "early", resume=True, **options)
    assert again.summary["steps"] == 2
    assert {name: (run.path / name).read_bytes() for name in kept} == kept
    options |= {"patience": 0, "steps": 3}
    longer = train(store, folder / "l.npy", out=folder / "early", resume=True, **options)
    assert Checkpoint.load(longer.last).settings["steps"] == longer.summary["steps"] == 3
