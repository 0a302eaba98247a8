from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from result_samples import add_views, make_checkpoint, make_store

from embedcache.errors import (
    ConfigError,
    InputError,
    MismatchError,
    MissingTilesError,
    VolumeError,
    WeightsError,
)
from embedcache.progress import Silent
from embedcache.results import predict
from embedcache.sam.decoder import Decoder, Prompts, upscale_logits
from embedcache.train.adapter import AdaptedDecoder
from embedcache.train.questions.mask_prompts import open_mask_prompts
from embedcache.volume import Preprocess


def test_a_store_becomes_masks_at_the_volumes_own_size(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(70, 60)] * 2)
    prediction = predict(store, make_checkpoint(tmp_path / "c.safetensors", store), tmp_path / "m.zarr")
    masks = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")["0"][...]
    assert masks.shape == (2, 70, 60)
    np.testing.assert_array_equal(masks[1] > 0, prediction[1])
    assert prediction.to_dict()["tiles"] == 4
    assert prediction.to_dict()["output"] == str(tmp_path / "m.zarr")


def test_a_store_with_views_is_predicted_once_per_place(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(70, 60)] * 2)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    before = predict(store, checkpoint)
    add_views(store, (2, 5))
    assert store.committed.sum() == 3 * before.tiles
    after = predict(store, checkpoint)
    assert after.to_dict()["tiles"] == before.tiles
    assert after.tiles_missing == 0
    for plane in range(2):
        np.testing.assert_array_equal(after.probabilities(plane), before.probabilities(plane))


def test_a_checkpoint_with_an_adapter_predicts_through_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    model = AdaptedDecoder.around(Decoder.random(1))
    same = make_checkpoint(tmp_path / "a.safetensors", store, state=model.state_dict(), adapter=True)
    plain = make_checkpoint(tmp_path / "b.safetensors", store)
    want = predict(store, plain).probabilities(0)
    np.testing.assert_allclose(predict(store, same).probabilities(0), want, atol=1e-6)
    with torch.no_grad():
        model.adapter.up.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    moved = make_checkpoint(tmp_path / "c.safetensors", store, state=model.state_dict(), adapter=True)
    assert np.abs(predict(store, moved).probabilities(0) - want).max() > 1e-3


def test_a_checkpoint_that_is_asked_with_masks_starts_from_earlier_predictions(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 2)
    first = make_checkpoint(tmp_path / "a.safetensors", store)
    second = make_checkpoint(tmp_path / "b.safetensors", store, prompts="mask")
    with pytest.raises(ConfigError, match="earlier predictions") as caught:
        predict(store, second)
    assert "--start" in str(caught.value.hint)
    predict(store, first, tmp_path / "p.zarr", probabilities=True)
    refined = predict(store, second, start=tmp_path / "p.zarr")
    assert (refined.prompts, refined.to_dict()["prompt_source"]) == ("mask", "free")
    logits = torch.from_numpy(open_mask_prompts(tmp_path / "p.zarr", store).logits(store.tile(0)))
    prompts = Prompts((1,), mask_input=logits[None, None])
    with torch.inference_mode():
        low = second.decoder()(store[0][None], prompts).low_res_logits[0, 0]
    want = torch.sigmoid(upscale_logits(low, store.tile(0))).numpy()
    np.testing.assert_allclose(refined.probabilities(0), want, atol=1e-5)


def test_without_an_output_nothing_is_written(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 2)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    prediction = predict(store.path, checkpoint.path)
    assert len(prediction) == 2
    assert prediction[0].dtype == bool
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.safetensors", "s.zarr"]


def test_a_photo_collection_becomes_pngs_of_each_photos_size(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(50, 80), (64, 40)], uniform=False)
    predict(store, make_checkpoint(tmp_path / "c.safetensors", store), tmp_path / "masks")
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "masks").glob("*.png")}
    assert sizes == {"image_0.png": (80, 50), "image_1.png": (40, 64)}


def test_the_threshold_is_the_checkpoints_own_unless_given(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, threshold=-1.0)
    own, strict = predict(store, checkpoint), predict(store, checkpoint, threshold=1.0)
    assert own.threshold == pytest.approx(0.2689, abs=1e-4)
    np.testing.assert_array_equal(own[0], own.probabilities(0) > own.threshold)
    assert not strict[0].any()
    with pytest.raises(ConfigError, match="between 0 and 1"):
        predict(store, checkpoint, threshold=1.5)


def test_tiles_that_are_not_encoded_stay_not_predicted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 128)] * 3, only=[0, 1, 64])
    prediction = predict(store, make_checkpoint(tmp_path / "c.safetensors", store))
    assert prediction.planes == [0, 1]
    assert not np.isnan(prediction.probabilities(0)).any()
    assert np.isnan(prediction.probabilities(1)[:, 64:]).all()
    assert prediction.tiles_missing == 3


def test_a_selection_narrows_what_is_predicted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 128)] * 3)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    prediction = predict(store, checkpoint, z_range="1:2", bbox="0:10,0:10")
    assert (prediction.planes, prediction.tiles) == ([1], 1)
    with pytest.raises(VolumeError, match="outside"):
        predict(store, checkpoint, z_range="3:5")


def test_a_tiff_of_some_planes_says_what_the_other_pages_hold(tmp_path: Path) -> None:
    class Heard(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    said: list[str] = []
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 3)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    predict(store, checkpoint, tmp_path / "m.tif", z_range="1:2", progress=Heard())
    assert "1 of 3 planes are predicted; the other pages hold 0" in said[-1]
    predict(store, checkpoint, tmp_path / "m.tif", progress=Heard())
    assert len(said) == 1


def test_a_selection_without_an_embedding_says_how_to_get_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 3, only=[0])
    with pytest.raises(MissingTilesError, match="encode"):
        predict(store, make_checkpoint(tmp_path / "c.safetensors", store), z_range="1:3")


def test_a_store_of_another_embedding_space_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    other = make_store(tmp_path / "o.zarr", [(64, 64)], preprocess=Preprocess("repeat", (0.0, 99.0)))
    with pytest.raises(MismatchError, match="another space"):
        predict(other, make_checkpoint(tmp_path / "c.safetensors", store), tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_another_volume_of_the_same_space_is_predicted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    other = make_store(tmp_path / "o.zarr", [(64, 64)], volume={"kind": "npy", "shape": [1, 64, 64]})
    assert predict(other, make_checkpoint(tmp_path / "c.safetensors", store)).tiles == 1


def test_prompts_from_a_truth_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    with pytest.raises(ConfigError, match="truth"):
        predict(store, checkpoint, prompts="box")
    grid, none = (predict(store, checkpoint, prompts=kind) for kind in ("grid:free", "none"))
    assert (grid.probabilities(0) != none.probabilities(0)).any()


def test_what_is_no_checkpoint_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError):
        predict(tmp_path / "missing.zarr", tmp_path / "c.safetensors")


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    checkpoint = make_checkpoint(
        tmp_path / "c.safetensors", store, recipe={"model": "vit_tiny", "checkpoint": "random:0", "tile": 64}
    )
    with pytest.raises(VolumeError, match="missing"):
        predict(tmp_path / "missing.zarr", checkpoint, cache_dir=tmp_path / "cache")


def never(*_: object, **__: object) -> None:
    pytest.fail("the volume was encoded before the output was checked")


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("photos", "what is predicted"),
        ("photos/a.png", "what is predicted"),
        ("thesis", "not replaced"),
        ("note.txt/masks", "is a file"),
        ("m.png", "2 planes"),
        ("m.csv", "not probabilities"),
        ("m.jpg", "no ending that predict writes"),
        ("m.xyz", "no ending that predict writes"),
    ],
)
def test_a_wrong_output_is_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, word: str
) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    for name in ("photos/a.png", "photos/b.png", "thesis/figure.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 40), 9).save(tmp_path / name)
    (tmp_path / "note.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(importlib.import_module("embedcache.results.predict"), "run_encode", never)
    with pytest.raises(InputError, match=word):
        predict(tmp_path / "photos", checkpoint, tmp_path / output, probabilities=output == "m.csv")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_checkpoint_is_asked_as_its_figures_were(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)])
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, prompts="grid:free")
    assert predict(store, checkpoint).prompts == "grid:free"


def test_planes_are_joined_to_one_under_a_name_for_what_is_written(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 3)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    found = predict(store, checkpoint, tmp_path / "m.zarr", probabilities=True, flatten="mean", name="a")
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")
    assert group.attrs["embedcache"]["flatten"] == "mean"
    assert "origin" in group.attrs["embedcache"]  # where the data come from, licence and citation
    written = group["0"][...]
    wanted = np.mean([found.probabilities(plane) for plane in range(3)], axis=0)
    np.testing.assert_allclose(written, wanted[None], atol=1e-5)
    predict(store, checkpoint, tmp_path / "m.csv", flatten="max", name="a")
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0] == "Id,Predicted"
    assert [line.split(",")[0] for line in lines[1:]] == ["a"]
    with pytest.raises(ConfigError, match="--flatten"):
        predict(store, checkpoint, tmp_path / "m.png", flatten="median")
