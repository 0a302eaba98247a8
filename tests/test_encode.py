"""Stage one keeps its promises: right bytes, resume, widening, refusal, and nothing done twice."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from result_samples import make_checkpoint, make_store

from embedcache.encode import encode, run_encode
from embedcache.encode.estimate import estimate
from embedcache.encode.options import options_from
from embedcache.encode.recipe import recipe_of
from embedcache.encode.survey import survey
from embedcache.errors import (
    ConfigError,
    InputError,
    Interrupted,
    MismatchError,
    StorageError,
    VolumeError,
    WeightsError,
)
from embedcache.progress import Silent
from embedcache.sam.encoder import Encoder
from embedcache.sam.weights import resolve_weights

# The public function encode hides its package from a plain import of these modules
pipeline, prepare = (importlib.import_module(f"embedcache.encode.{name}") for name in ("pipeline", "prepare"))


TINY = {"model": "vit_tiny", "tile": 64, "precision": "fp32", "device": "cpu", "shard_tiles": 2}


def run(volume: Path, stop=lambda: None, **wishes):
    return run_encode(options_from(volume, TINY | wishes), Silent(), stop)


def shard_bytes(store_path: Path) -> dict[str, str]:
    """Digest of every file of embeddings."""
    root = store_path / "image_embeddings" / "c"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Four planes of 48 × 64: one tile of 64 px each, padded below."""
    path = tmp_path / "scan.npy"
    np.save(path, np.random.default_rng(1).integers(1, 255, (4, 48, 64), dtype=np.uint8))
    return path


def test_every_embedding_is_the_encoder_of_the_preprocessed_tile(volume, tmp_path):
    result = run(volume, store=tmp_path / "s.zarr", z_range="0:2")
    store, spec = result.store, result.store.spec
    encoder = Encoder(
        resolve_weights("vit_tiny"), device=torch.device("cpu"), precision="fp32", numerics=store.numerics
    )
    pixels = np.load(volume)
    for number in np.flatnonzero(store.committed):
        plane = store.tile(int(number)).plane
        inputs = torch.from_numpy(spec.preprocess.to_input(pixels[plane])[None])
        assert torch.equal(store[int(number)], encoder(inputs)[0].half().float())
    assert result.encoder_calls == result.encoded == 2


def test_a_second_encode_calls_no_encoder_and_changes_no_byte(volume, tmp_path):
    first = run(volume, store=tmp_path / "s.zarr")
    before = all_bytes(tmp_path / "s.zarr")
    second = run(volume, store=tmp_path / "s.zarr")
    assert (first.encoded, second.encoded, second.encoder_calls, second.reused) == (4, 0, 0, 4)
    assert second.checked_pixels == 4
    changed = {name for name, data in all_bytes(tmp_path / "s.zarr").items() if before.get(name) != data}
    assert not changed


def test_widening_encodes_only_what_is_missing_and_ends_with_the_same_bytes(volume, tmp_path):
    run(volume, store=tmp_path / "narrow.zarr", z_range="0:1")
    widened = run(volume, store=tmp_path / "narrow.zarr")
    whole = run(volume, store=tmp_path / "whole.zarr")
    assert widened.encoded == 3
    assert shard_bytes(tmp_path / "narrow.zarr") == shard_bytes(tmp_path / "whole.zarr")
    assert whole.store.fingerprint == widened.store.fingerprint
    assert not widened.store.missing.any()


def test_an_interrupted_run_keeps_what_it_encoded_and_resumes_to_the_same_bytes(volume, tmp_path):
    asked = iter([None, 15, 15])
    with pytest.raises(Interrupted) as interruption:
        run(volume, stop=lambda: next(asked, 15), store=tmp_path / "s.zarr", shard_tiles=4)
    assert interruption.value.exit_code == 143
    resumed = run(volume, store=tmp_path / "s.zarr", shard_tiles=4)
    run(volume, store=tmp_path / "whole.zarr", shard_tiles=4)
    assert 0 < resumed.encoded < 4
    assert shard_bytes(tmp_path / "s.zarr") == shard_bytes(tmp_path / "whole.zarr")


def test_a_store_of_another_recipe_is_refused_field_by_field_and_untouched(volume, tmp_path):
    run(volume, store=tmp_path / "s.zarr", z_range="0:1")
    before = all_bytes(tmp_path / "s.zarr")
    with pytest.raises(MismatchError) as refusal:
        run(volume, store=tmp_path / "s.zarr", window="0:200")
    assert refusal.value.exit_code == 3
    assert any("window" in name for name in refusal.value.differences)
    with pytest.raises(MismatchError) as refusal:
        run(volume, store=tmp_path / "s.zarr", checkpoint="random:7")
    assert any("encoder_digest" in name for name in refusal.value.differences)
    assert all_bytes(tmp_path / "s.zarr") == before


def test_one_changed_voxel_is_found_when_all_pixels_are_checked(volume, tmp_path):
    run(volume, store=tmp_path / "s.zarr")
    pixels = np.load(volume)
    pixels[2, 30, 40] ^= 1
    np.save(volume, pixels)
    with pytest.raises(MismatchError):
        run(volume, store=tmp_path / "s.zarr", check_pixels=None)


def test_a_tile_with_nan_fails_alone_and_is_named(tmp_path):
    pixels = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)
    pixels[1, 5, 6] = np.nan
    np.save(tmp_path / "float.npy", pixels)
    result = run(tmp_path / "float.npy", store=tmp_path / "s.zarr", window="0:1")
    assert (result.exit_code, result.encoded, list(result.failed)) == (7, 2, [1])
    assert "NaN" in result.failed[1]
    assert "NaN" in result.store.failed[1]
    with pytest.raises(VolumeError, match="NaN"):
        encode(tmp_path / "float.npy", store=tmp_path / "s.zarr", window="0:1", **TINY)


def test_a_volume_of_nothing_but_nan_is_refused(tmp_path):
    np.save(tmp_path / "nan.npy", np.full((2, 64, 64), np.nan, dtype=np.float32))
    with pytest.raises(VolumeError, match="NaN"):
        run(tmp_path / "nan.npy", store=tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_empty_tiles_are_skipped_recorded_and_not_asked_again(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (3, 64, 64), dtype=np.uint8)
    pixels[1] = 0
    np.save(tmp_path / "holes.npy", pixels)
    first = run(tmp_path / "holes.npy", store=tmp_path / "s.zarr", skip_empty=True)
    second = run(tmp_path / "holes.npy", store=tmp_path / "s.zarr", skip_empty=True)
    assert (first.encoded, first.skipped, second.encoded, second.skipped) == (2, 1, 0, 1)


def test_a_full_disk_is_refused_before_the_first_byte(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "free_bytes", lambda folder: 100)
    with pytest.raises(StorageError, match="Nothing was written"):
        run(volume, store=tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def save_image(path: Path, seed: int, size: tuple[int, int] = (40, 60)) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(path)


def test_an_image_added_to_a_folder_is_the_only_one_encoded(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    save_image(folder / "b.png", 0)
    first = run(folder, cache_dir=tmp_path / "cache")
    embedding = first.store[0]
    save_image(folder / "a.png", 1, (64, 64))
    second = run(folder, cache_dir=tmp_path / "cache")
    assert (first.encoded, second.encoded, second.reused) == (1, 1, 1)
    assert [record.name for record in second.store.images] == ["b.png", "a.png"]
    assert torch.equal(second.store[0], embedding)


def test_a_sampled_window_stays_when_images_are_added(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(100, 900, (40, 60), dtype=np.uint16)).save(folder / "a.png")
    first = run(folder, cache_dir=tmp_path / "cache")
    Image.fromarray(rng.integers(30000, 60000, (40, 60), dtype=np.uint16)).save(folder / "b.png")
    second = run(folder, cache_dir=tmp_path / "cache")
    assert (second.encoded, second.reused) == (1, 1)
    assert second.store.spec.preprocess.window == first.store.spec.preprocess.window


def test_a_changed_image_is_refused(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    save_image(folder / "a.png", 0)
    run(folder, store=tmp_path / "s.zarr")
    save_image(folder / "a.png", 5)
    with pytest.raises(MismatchError, match="changed"):
        run(folder, store=tmp_path / "s.zarr")


def test_like_takes_the_whole_recipe_from_a_store(volume, tmp_path):
    first = run(volume, store=tmp_path / "s.zarr", z_range="0:1", window="3:99")
    np.save(tmp_path / "other.npy", np.load(volume)[:1] // 2)
    second = encode(
        tmp_path / "other.npy", like=tmp_path / "s.zarr", cache_dir=tmp_path / "cache", device="cpu"
    )
    assert second.embedding_space == first.store.embedding_space
    assert second.fingerprint != first.store.fingerprint
    assert recipe_of(second) == recipe_of(first.store)


def test_like_takes_the_recipe_from_a_run_or_its_checkpoint_too(tmp_path):
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    recipe = {"model": "vit_tiny", "checkpoint": "random:0", "tile": "full", "window": "3:99"}
    checkpoint = make_checkpoint(tmp_path / "run" / "best.safetensors", store, recipe=recipe)
    for like in (checkpoint, checkpoint.path, tmp_path / "run", str(checkpoint.path)):
        assert recipe_of(like) == recipe
    assert options_from("v", {}, checkpoint.path).tile is None
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="neither a store nor a checkpoint"):
        recipe_of(tmp_path / "x.safetensors")


def test_a_selection_outside_is_refused_before_weights_are_looked_for(volume, monkeypatch):
    monkeypatch.setattr(prepare, "resolve_weights", lambda *_, **__: pytest.fail("weights were looked for"))
    with pytest.raises(VolumeError, match="outside"):
        run(volume, bbox="0:10,500:900")


@pytest.mark.parametrize(
    ("wishes", "error", "word"),
    [
        ({"bbox": "0:10,500:900"}, VolumeError, "500"),
        ({"z_range": "9:12"}, VolumeError, "9"),
        ({"channels": "rgb"}, VolumeError, "rgb"),
        ({"checkpoint": "nowhere.pth"}, WeightsError, "nowhere.pth"),
        ({"model": "vit_x"}, WeightsError, "vit_x"),
        ({"tile": 3}, ConfigError, "tile"),
        ({"overlap": 64}, InputError, "overlap"),
        ({"colour": "red"}, ConfigError, "colour"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(volume, tmp_path, wishes, error, word):
    with pytest.raises(error) as refusal:
        run(volume, **({"store": tmp_path / "s.zarr"} | wishes))
    assert refusal.value.exit_code == 2
    assert word in str(refusal.value)
    assert not (tmp_path / "s.zarr").exists()


def test_a_window_of_another_intensity_scale_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(5000, 60000, (2, 64, 64), dtype=np.uint16)
    np.save(tmp_path / "wide.npy", pixels)
    with pytest.raises(VolumeError, match="intensity scale"):
        run(tmp_path / "wide.npy", store=tmp_path / "s.zarr", window="0:255")
    assert not (tmp_path / "s.zarr").exists()


def test_a_window_that_clips_much_is_said(tmp_path):
    lines = []

    class Listener(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    pixels = np.random.default_rng(0).integers(1, 255, (1, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "scan.npy", pixels)
    survey(options_from(tmp_path / "scan.npy", TINY | {"window": "0:60"}), Listener())
    assert "outside the window 0:60" in lines[0]


def test_a_plan_without_weights_still_tells_tiles_and_bytes(volume, tmp_path, monkeypatch):
    for name in ("EMBEDCACHE_MODELS", "MICROSAM_CACHEDIR", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    figures = estimate(options_from(volume, {"tile": 64}), Silent())
    assert (figures.tiles_selected, figures.files, figures.seconds_estimated) == (4, 1, None)
    assert figures.bytes > 4 * 2**21
    assert "download" in figures.unknown


def test_a_plan_times_a_few_tiles_and_leaves_nothing_behind(volume, tmp_path):
    figures = estimate(options_from(volume, TINY | {"cache_dir": tmp_path / "cache"}), Silent())
    assert figures.seconds_estimated == pytest.approx(figures.seconds_start + 4 * figures.seconds_per_tile)
    assert figures.break_even_epochs >= 1.0
    assert figures.numerics["compiled"] is False
    assert figures.bottleneck == "encode"
    assert figures.write_bytes_per_second > 1e6
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_no_store_is_refused_and_untouched(volume, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError):
        run(volume, store=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
