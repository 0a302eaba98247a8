"""Tiles of equal pixels are encoded once, and the store's bytes do not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encode_samples import quick, scan, shard_digests

from embedcache.encode import overlapped, twins
from embedcache.encode.twins import Fate, Twins
from embedcache.sam.encoder import Encoder
from embedcache.sam.weights import resolve_weights

AIR = (0, 2, 3, 5, 6)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Eight planes in shards of four, five of them of one value."""
    path = scan(tmp_path / "scan.npy", planes=8)
    pixels = np.load(path)
    pixels[list(AIR)] = 7
    np.save(path, pixels)
    return path


@pytest.fixture
def without_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile goes through the encoder."""
    monkeypatch.setattr(Twins, "fate", lambda self, digest: Fate.ENCODE)


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_equal_pixels_are_encoded_once_within_and_between_shards(volume, tmp_path, store_dtype):
    result = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4, store_dtype=store_dtype)
    assert (result.encoded, result.encoder_calls, result.identical) == (8, 4, 4)
    assert result.to_dict()["tiles_identical"] == 4
    for number in AIR[1:]:
        assert torch.equal(result.store[number], result.store[0])
    assert not torch.equal(result.store[1], result.store[0])


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_the_bytes_are_those_of_encoding_every_tile(volume, tmp_path, store_dtype, request):
    wishes = {"shard_tiles": 4, "store_dtype": store_dtype}
    copied = quick(volume, store=tmp_path / "copied.zarr", **wishes)
    request.getfixturevalue("without_twins")
    encoded = quick(volume, store=tmp_path / "encoded.zarr", **wishes)
    assert (copied.encoder_calls, encoded.encoder_calls) == (4, 8)
    assert shard_digests(tmp_path / "copied.zarr") == shard_digests(tmp_path / "encoded.zarr")


def test_sams_own_encoder_gives_a_copy_the_bytes_of_encoding(tmp_path):
    """What is copied is what the real encoder gives for the tile in any batch."""
    path = scan(tmp_path / "scan.npy", planes=3)
    np.save(path, np.load(path)[[0, 1, 0]])
    wishes = {"model": "vit_tiny", "shard_tiles": 4}
    store = quick(path, store=tmp_path / "s.zarr", **wishes).store
    weights = resolve_weights("vit_tiny", "random:0")
    encoder = Encoder(weights, device=torch.device("cpu"), precision="fp32", numerics=store.numerics)
    inputs = np.stack([store.spec.preprocess.to_input(plane) for plane in np.load(path)])
    for number, expected in enumerate(encoder(torch.from_numpy(inputs))):
        assert torch.equal(store[number], expected.half().float())


def test_a_later_run_copies_what_an_earlier_one_encoded(volume, tmp_path):
    first = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4, z_range="0:1")
    later = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4)
    assert (first.encoder_calls, later.encoder_calls, later.identical) == (1, 3, 4)
    quick(volume, store=tmp_path / "whole.zarr", shard_tiles=4)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")


def test_partial_commits_of_a_shard_change_neither_bytes_nor_calls(volume, tmp_path, monkeypatch):
    quick(volume, store=tmp_path / "whole.zarr", shard_tiles=4)
    monkeypatch.setattr(overlapped, "COMMIT_SECONDS", 0.0)
    result = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4)
    assert (result.encoded, result.encoder_calls) == (8, 4)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")


def test_identical_tiles_of_a_shard_take_the_place_of_one(volume, tmp_path):
    store = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4).store
    files = [path for path in (store.path / "image_embeddings" / "c").rglob("0") if path.is_file()]
    assert sorted(path.stat().st_size // 2**21 for path in files) == [2, 3]  # the distinct ones of four each


def test_a_damaged_twin_is_not_copied(volume, tmp_path):
    store = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4, z_range="0:1").store
    shard = store.path / "image_embeddings" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    result = quick(volume, store=tmp_path / "s.zarr", shard_tiles=4, z_range="5:7", check_pixels=0)
    whole = quick(volume, store=tmp_path / "whole.zarr", shard_tiles=4).store
    assert (result.encoder_calls, result.identical) == (1, 1)
    assert torch.equal(result.store[5], whole[5])


def test_a_tile_that_fails_takes_its_twins_with_it(tmp_path):
    pixels = np.load(scan(tmp_path / "scan.npy", planes=4))
    pixels[[1, 3]] = 255  # the encoder "ill" answers white corners with values that cannot be stored
    np.save(tmp_path / "scan.npy", pixels)
    result = quick(tmp_path / "scan.npy", store=tmp_path / "s.zarr", model="ill", shard_tiles=4)
    assert sorted(result.failed) == [1, 3]
    assert result.failed[1] == result.failed[3]
    assert (result.encoded, result.identical, result.exit_code) == (2, 0, 7)


def test_what_many_tiles_taught_is_kept_in_little_memory_and_still_found(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "LEARNED", 2)
    path = scan(tmp_path / "scan.npy", planes=24)
    pixels = np.load(path)
    pixels[12:] = pixels[:12]
    np.save(path, pixels)
    result = quick(path, store=tmp_path / "s.zarr", shard_tiles=2)
    assert (result.encoded, result.encoder_calls, result.identical) == (24, 12, 12)
    for number in range(12):
        assert torch.equal(result.store[number], result.store[number + 12])
