"""Processes that torchrun started train as one does: the same curve, one folder, one voice, the same tiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from process_pairs import forked_pair
from training_stores import (
    blob_labels,
    crowd_labels,
    embedding_of,
    labelled_folder,
    make_store,
    save_labels,
)
from view_samples import give_views

from embedcache.errors import MismatchError
from embedcache.store import EmbeddingStore
from embedcache.train import Checkpoint, Run, train

LABELS = blob_labels(4, 64, 64)
OPTIONS: dict[str, Any] = {
    "val": "0:1", "steps": 2, "validate_every": 2, "lr": 1e-3, "batch_size": 3, "rounds": 2, "ema": 0.9,
    "device": "cpu", "logger": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("several"), crowd_labels())


def torchrun(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = ["--standalone", "--nproc-per-node", "2", "-m", "embedcache", "train", "--store", "s.zarr"]
    words += ["--labels", "l.npy", "--out", str(out), "--adapter", "--json"]
    for name, value in OPTIONS.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
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
    """Three tiles a step on two processes, asked differently often, in rounds, with an average and an adapter."""
    alone = train(folder / "s.zarr", folder / "l.npy", out=folder / "alone", adapter=True, **OPTIONS)
    done = torchrun(folder, folder / "two")
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
    assert any(name.startswith("adapter.") for name in first)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert done.stderr.count("going on") == 0


def a_tile_more(folder: Path) -> tuple[EmbeddingStore, EmbeddingStore]:
    """A store before and after one more of its tiles was encoded."""
    before = make_store(folder / "s.zarr", LABELS, absent=(1,))
    after = EmbeddingStore.open(before.path)
    tile = after.tile(1)
    more = {1: embedding_of(LABELS[tile.plane][tile.slices] > 0, tile, 1)}
    with after.writer() as writer:
        writer.commit_shard(0, embeddings=more, input_digests={1: f"{1:064x}"})
    return before, after


def more_views(folder: Path) -> tuple[EmbeddingStore, EmbeddingStore]:
    """A store before and after its tiles were encoded in further positions."""
    before = make_store(folder / "s.zarr", LABELS)
    return before, give_views(EmbeddingStore.open(before.path), LABELS)


def another_store(folder: Path) -> tuple[EmbeddingStore, EmbeddingStore]:
    """What two machines may have under one name: the same tiles by another encoder."""
    other = make_store(folder / "t.zarr", LABELS, encoder="sha256:" + "1" * 64)
    return make_store(folder / "s.zarr", LABELS), other


@pytest.mark.parametrize("make", [a_tile_more, more_views, another_store])
def test_processes_that_saw_different_tiles_all_refuse_and_write_nothing(tmp_path: Path, make: Any) -> None:
    stores, labels, out = make(tmp_path), save_labels(tmp_path / "l.npy", LABELS), tmp_path / "run"
    options = {**OPTIONS, "val": "3:4", "batch_size": 2, "allow_partial": True}

    def saw(rank: int, seen: int) -> int:
        try:
            train(stores[seen], labels, out=out, **options)
        except MismatchError as error:
            return error.exit_code if "saw different tiles" in str(error) else 71
        return 0

    assert forked_pair(lambda rank: saw(rank, rank)) == [3, 3]
    assert not out.exists()
    if make is a_tile_more:  # and those that saw the same do train
        assert forked_pair(lambda rank: saw(rank, 1)) == [0, 0]
        assert Run(out).finished
