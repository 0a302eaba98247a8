"""Processes that torchrun started train as one does: the same curve, one folder, one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_stores import blob_labels, make_store, save_labels

from embedcache.train import Checkpoint, Run, train

LABELS = blob_labels(4, 64, 64)
STEPS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("several")
    make_store(folder / "s.zarr", LABELS)
    save_labels(folder / "l.npy", LABELS)
    return folder


def torchrun(folder: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--standalone", "--nproc-per-node", "2", "-m", "embedcache", "train", "--store", "s.zarr"]
    words += ["--labels", "l.npy", "--out", str(out), "--val", "3:4", "--steps", str(STEPS), "--lr", "1e-3"]
    words += ["--validate-every", "20", "--device", "cpu", "--logger", "none", "--json", *more]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_train_as_one(folder: Path) -> None:
    options = {
        "val": "3:4",
        "steps": STEPS,
        "lr": 1e-3,
        "validate_every": 20,
        "batch_size": 2,
        "device": "cpu",
        "logger": "none",
    }
    alone = train(folder / "s.zarr", folder / "l.npy", out=folder / "alone", **options)  # type: ignore[arg-type]
    done = torchrun(folder, folder / "two", "--batch-size", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)  # one of them speaks
    assert summary["ranks"] == 2
    two = Run(folder / "two")
    assert len(two.metrics) == len(alone.metrics)  # and one writes
    for one, other in zip(alone.metrics, two.metrics, strict=True):
        for name in {"loss", "focal", "dice", "iou", "grad_norm", "f05"} & set(one):
            assert other[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
        assert {name: one[name] for name in ("step", "split")} == {
            name: other[name] for name in ("step", "split")
        }
    assert two.best == pytest.approx(alone.best, rel=1e-3)
    first, second = (Checkpoint.load(run.last).state for run in (alone, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert done.stderr.count("going on") == 0
