"""The fidelity certificate says how far a store is from float32, and is kept in the store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encode_samples import quick
from store_samples import make_store

from embedcache.encode.care import fidelity
from embedcache.encode.care.against import compare_with
from embedcache.encode.care.fidelity import Measured, certify
from embedcache.errors import CorruptionError, InputError, MismatchError, VolumeError
from embedcache.progress import Silent
from embedcache.store import EmbeddingStore
from embedcache.store.certificate import Certificate


@pytest.fixture(autouse=True)
def one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen prompts a tile take seconds without a GPU."""
    monkeypatch.setattr(fidelity, "GRID", 1)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of 5 planes, and stores of it."""
    folder = tmp_path_factory.mktemp("originals")
    np.save(folder / "scan.npy", np.random.default_rng(0).integers(1, 255, (5, 48, 64), np.uint8))
    for name in ("float16", "int8"):
        quick(folder / "scan.npy", store=folder / name, store_dtype=name)
    quick(folder / "scan.npy", store=folder / "bf16", precision="bf16")
    return folder


def opened(originals: Path, name: str) -> EmbeddingStore:
    return EmbeddingStore.open(originals / name)


def measure(store: EmbeddingStore, count: int = 1, **changes: Any) -> Certificate:
    wishes: dict[str, Any] = {
        "volume": None,
        "checkpoint": None,
        "device": "cpu",
        "seed": 1,
        "progress": Silent(),
    }
    return certify(store, count, **(wishes | changes))


def test_float16_of_float32_is_nearly_exact_and_comes_out_bit_for_bit(originals: Path) -> None:
    found = measure(opened(originals, "float16"))
    assert (found.tiles, found.reproduced, found.same_numerics) == (1, 1, True)
    assert found.cosine > 0.999999
    assert 0 < found.rms_error <= found.max_abs_error < 0.01
    assert found.iou_mean > 0.99
    assert found.iou_min <= found.iou_mean
    assert (found.store_dtype, found.precision, found.model_type) == ("float16", "fp32", "patches")


def test_int8_is_less_exact_than_float16_and_comes_out_bit_for_bit(originals: Path) -> None:
    half, eighth = measure(opened(originals, "float16")), measure(opened(originals, "int8"))
    assert eighth.reproduced == 1
    assert half.rms_error < eighth.rms_error
    assert half.relative_l2 < eighth.relative_l2
    assert half.cosine > eighth.cosine > 0.99


def test_a_store_of_bf16_is_compared_with_float32(originals: Path) -> None:
    found = measure(opened(originals, "bf16"))
    assert found.reproduced == 1
    assert found.rms_error > measure(opened(originals, "float16")).rms_error


def test_the_seed_draws_the_tiles_and_more_than_there_are_is_all(originals: Path) -> None:
    store = opened(originals, "float16")
    assert measure(store, seed=5) == measure(store, seed=5)
    assert measure(store, seed=5).rms_error != measure(store, seed=6).rms_error
    assert measure(store, 99).tiles == 5


def test_a_certificate_is_kept_and_the_latest_is_shown(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "float16", tmp_path / "s")
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.certificate is None
    first = measure(store)
    second = replace(first, tiles=2)
    store.add_certificate(first.to_dict())
    store.add_certificate(second.to_dict())
    again = EmbeddingStore.open(tmp_path / "s")
    assert again.certificate is not None
    assert Certificate.from_dict(again.certificate) == second
    assert "on 2 tiles" in second.sentence
    assert "untrained" in second.sentence
    assert "untrained" not in replace(second, untrained=False).sentence


@pytest.mark.parametrize("wrong", [{"tiles": "3"}, {"tiles": True}, {"cosine": None}, {"untrained": 1}])
def test_a_malformed_certificate_is_corruption(originals: Path, wrong: dict[str, object]) -> None:
    values = measure(opened(originals, "float16"), 1).to_dict()
    assert Certificate.from_dict(values | {"newer": 1}) == Certificate.from_dict(values)
    with pytest.raises(CorruptionError):
        Certificate.from_dict(values | wrong)
    values.pop("device")
    with pytest.raises(CorruptionError):
        Certificate.from_dict(values)


@pytest.mark.parametrize("count", [0, -1])
def test_no_tile_is_no_certificate(originals: Path, count: int) -> None:
    with pytest.raises(InputError):
        measure(opened(originals, "float16"), count)


def test_a_store_without_embeddings_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no embedding"):
        measure(make_store(tmp_path / "s"))


def test_pixels_that_changed_give_no_certificate(originals: Path, tmp_path: Path) -> None:
    pixels = np.load(originals / "scan.npy")
    np.save(tmp_path / "other.npy", pixels[::-1])
    with pytest.raises(MismatchError, match="not the ones that were encoded"):
        measure(opened(originals, "float16"), 5, volume=str(tmp_path / "other.npy"))


def test_other_numerics_are_said(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(originals, "float16")
    store.state.numerics[0] = store.state.numerics[0] | {"device": "cuda:Some GPU"}
    assert not measure(store, 1).same_numerics


# ---- the figures


def test_equal_embeddings_have_no_error_also_when_they_are_nothing() -> None:
    zero, measured = torch.zeros(256, 64, 64), Measured()
    measured.add(zero, zero)
    assert (measured.largest, measured.relative, measured.cosines) == (0.0, [0.0], [1.0])
    measured.add(torch.ones(256, 64, 64), zero)
    assert measured.cosines[1] < 1


def test_masks_are_compared_at_the_median_and_at_zero_where_that_says_something() -> None:
    reference = torch.linspace(-1, 1, 64).reshape(1, 8, 8).repeat(3, 1, 1)
    reference[1] += 5  # all inside at logit 0
    reference[2] -= 5  # all outside
    measured = Measured()
    measured.add_masks(reference, reference)
    assert (measured.median_ious, measured.zero_ious) == ([1.0] * 3, [1.0])
    measured.add_masks(-reference, reference)
    assert min(measured.median_ious) == min(measured.zero_ious) == 0.0


def test_masks_without_any_meaning_at_zero_have_no_figure_there(
    originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "MEANINGFUL", (2.0, 3.0))
    found = measure(opened(originals, "float16"), 1)
    assert (found.zero_masks, found.zero_iou_mean, found.zero_iou_min) == (0, None, None)


# ---- against the volume


def test_every_changed_pixel_is_found_and_its_place_is_said(originals: Path, tmp_path: Path) -> None:
    store = opened(originals, "float16")
    numbers = np.flatnonzero(store.committed)
    same = compare_with(store, None, numbers, Silent())
    assert (same.same, same.compared, same.changed) == (True, 5, ())
    pixels = np.load(originals / "scan.npy")
    pixels[3, 40, 60] ^= 1
    np.save(tmp_path / "changed.npy", pixels)
    found = compare_with(store, str(tmp_path / "changed.npy"), numbers, Silent())
    assert (found.changed, found.same) == ((3,), False)
    assert "z=3" in found.places[0]
    assert set(found.header) == {"pixels"}
    assert found.to_dict(1000)["tiles_changed"] == 1


def test_another_volume_is_refused(originals: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((2, 48, 64), np.uint8))
    store = opened(originals, "float16")
    with pytest.raises(MismatchError, match="cannot be the volume"):
        compare_with(store, str(tmp_path / "small.npy"), np.arange(1), Silent())
    with pytest.raises(VolumeError):
        compare_with(store, str(tmp_path / "nothing.npy"), np.arange(1), Silent())


def test_a_store_that_does_not_say_its_source_asks_for_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", provenance={})
    with pytest.raises(InputError, match="does not say"):
        compare_with(store, None, np.arange(0), Silent())


def test_an_image_that_is_gone_counts_as_changed(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / f"{name}.png")
    store = quick(folder, store=tmp_path / "s").store
    numbers = np.flatnonzero(store.committed)
    assert compare_with(store, None, numbers, Silent()).same
    (folder / "a.png").unlink()
    found = compare_with(store, None, numbers, Silent())
    assert (found.changed, found.unreadable) == ((0,), (0,))
    assert "a.png" in found.places[0]
