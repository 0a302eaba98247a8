"""Whoever asks for tiles gets those as they lie: views are only for the epochs of a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from encode_samples import QUICK, scan
from training_stores import blob_labels, make_image_store, make_store, save_labels, save_png_folder
from view_samples import give_views

from embedcache.cli.app import run as command
from embedcache.store import EmbeddingStore
from embedcache.train.truth.labels import open_labels
from embedcache.train.truth.needed import encode_command, needed_tiles
from embedcache.train.truth.places import gather
from embedcache.train.truth.split import make_split


def test_labels_splits_and_what_is_needed_are_those_of_a_store_without_views(tmp_path: Path) -> None:
    labels = blob_labels(6, 96, 70)
    path = save_labels(tmp_path / "labels.npy", labels)
    plain = make_store(tmp_path / "plain.zarr", labels, absent=(2,))
    viewed = give_views(make_store(tmp_path / "viewed.zarr", labels, absent=(2,)), labels)
    assert viewed.committed.sum() == 4 * plain.committed.sum()
    opened = [open_labels(path, store) for store in (plain, viewed)]
    for find in (lambda one, its: its.tiles(one), needed_tiles):
        found = [find(store, its) for store, its in zip((plain, viewed), opened, strict=True)]
        assert np.array_equal(*found)
        assert viewed.base[found[1]].all()
    for spec in ("auto", "0.3", "4:6"):
        splits = [make_split(store, its, spec) for store, its in zip((plain, viewed), opened, strict=True)]
        assert (splits[0].train, splits[0].val, splits[0].rule) == (
            splits[1].train,
            splits[1].val,
            splits[1].rule,
        )
    missing = np.array([2])
    assert encode_command(viewed, missing) == encode_command(plain, missing).replace("plain", "viewed")


def test_stores_with_and_without_views_are_split_together(tmp_path: Path) -> None:
    labels = blob_labels(6, 64, 64)
    path = save_labels(tmp_path / "labels.npy", labels)
    plain = make_store(tmp_path / "plain.zarr", labels)
    viewed = give_views(make_store(tmp_path / "viewed.zarr", labels), labels)
    stores = [plain, viewed]
    tiles = gather(stores, [open_labels(path, store) for store in stores])
    assert tiles.number.tolist() == [*range(6), *range(6)]
    assert tiles.store.tolist() == [0] * 6 + [1] * 6


def test_labels_of_images_touch_their_tiles_as_they_lie(tmp_path: Path) -> None:
    masks = {f"{name}.png": blob_labels(1, 64, 80, seed=at)[0] for at, name in enumerate("abc")}
    folder = save_png_folder(tmp_path / "labels", masks)
    store = make_image_store(tmp_path / "s.zarr", masks)
    before = open_labels(folder, store).tiles(store)
    with store.writer() as writer:
        writer.add_views([4])
    store = EmbeddingStore.open(store.path)
    assert np.array_equal(open_labels(folder, store).tiles(store), before)


def test_the_commands_speak_of_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, store = scan(tmp_path / "a.npy", planes=2), tmp_path / "s.zarr"
    words = ["--volume", str(volume), "--store", str(store), "--views", "flips", "--json"]
    for name, value in QUICK.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert command(["plan", *words]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert command(["encode", *words]) == 0
    assert json.loads(capsys.readouterr().out)["tiles_encoded"] == planned["tiles_missing"] == 8
    assert planned["views"] == 4
    assert command(["status", str(store), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["views"], status["tiles_committed"], status["complete"]) == ([0, 2, 4, 6], 8, True)
    assert command(["status", str(store)]) == 0
    assert "views" in capsys.readouterr().out
    assert command(["encode", *words[:4], "--views", "d8"]) == 2
