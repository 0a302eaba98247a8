"""Evaluate without --store: what the run held out is found by its path or by what it is, or marked in the list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from result_samples import make_checkpoint, make_store

from embedcache.cli.app import register, run
from embedcache.cli.run_stores import chosen_stores
from embedcache.errors import ConfigError

register()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stores, and a checkpoint whose run trained on a and held b out."""
    stores = [
        make_store(
            tmp_path / f"embeddings/{name}.zarr",
            [(64, 64)],
            volume={"kind": "npy", "shape": [1, 64, 64], "name": name},
        )
        for name in "ab"
    ]
    np.save(tmp_path / "b.npy", np.ones((64, 64), np.uint8))
    split = {
        "kind": "stores",
        "rule": "store 2 of 2 is held out",
        "train": [[0, [0]]],
        "val": [[1, [0]]],
        "stores": [store.fingerprint for store in stores],
    }
    make_checkpoint(
        tmp_path / "c.safetensors",
        stores[0],
        split=split,
        stores=tuple(str(store.path) for store in stores),
        labels=("gone", str(tmp_path / "b.npy")),
    )
    return tmp_path


def test_of_several_stores_those_that_the_run_held_out_are_evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(folder / "c.safetensors"), "--cache-dir", str(folder / "embeddings")]
    assert run(["evaluate", *words, "--threshold", "0", "--json"]) == 0
    said = capsys.readouterr().err
    assert f"store: {folder}/embeddings/b.zarr (held out by {folder}/c.safetensors)" in said
    assert f"labels: {folder}/b.npy (of the run)" in said
    both = chosen_stores(folder / "embeddings", str(folder / "c.safetensors"), "all", ["x", "y"])
    assert [Path(store).name for store in both.stores] == ["a.zarr", "b.zarr"]
    assert both.labels == ["x", "y"]


def test_a_store_that_moved_is_found_and_one_that_is_gone_leaves_a_marked_list(folder: Path) -> None:
    near, checkpoint = folder / "embeddings", str(folder / "c.safetensors")
    (near / "b.zarr").rename(near / "moved.zarr")
    assert chosen_stores(near, checkpoint, None).stores == [str(near / "moved.zarr")]
    (near / "moved.zarr").rename(folder / "away.zarr")
    make_store(near / "z.zarr", [(64, 64)], volume={"kind": "npy", "shape": [1, 64, 64], "name": "z"})
    with pytest.raises(ConfigError, match="2 stores") as caught:
        chosen_stores(near, checkpoint, "val")
    assert caught.value.message.endswith(f"1. {near}/a.zarr (trained on)\n  2. {near}/z.zarr")
