"""Mask prompts: earlier predictions over the same tiles, as logits in the decoder's frame; free of the truth."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from training_stores import blob_labels, make_store, save_labels, save_png_folder

from embedcache.errors import ConfigError, LabelError
from embedcache.geometry import Tile, see
from embedcache.store import EmbeddingStore
from embedcache.train.questions.dataset import EmbeddingDataset, collate
from embedcache.train.questions.mask_prompts import LARGEST_LOGIT, open_mask_prompts
from embedcache.train.questions.prompts import prompt_source

LABELS = blob_labels(2, 64, 96)
CHANCES = np.random.default_rng(0).random((2, 64, 96), dtype=np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("start") / "s.zarr", LABELS)


def test_probabilities_become_logits_of_the_tiles_cells_clipped_where_they_are_certain(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    chances = CHANCES.copy()
    chances[0, :8], chances[0, 8:16], chances[0, 16:24] = 0, 1, np.nan
    start = open_mask_prompts(save_labels(tmp_path / "p.npy", chances), store)
    tile = store.tile(0)
    logits = start.logits(tile)
    assert logits.shape == (256, 256)
    assert logits.dtype == np.float32
    found = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = chances[0][tile.slices].repeat(4, 0).repeat(4, 1)
    inner = slice(96, None)
    np.testing.assert_allclose(found[inner], np.clip(expected[inner], 4.6e-5, 1 - 4.6e-5), atol=1e-6)
    assert logits[:32] == pytest.approx(-LARGEST_LOGIT, abs=1e-3)
    assert logits[32:64] == pytest.approx(LARGEST_LOGIT, abs=1e-2)
    assert logits[64:96] == pytest.approx(0)


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.uint8, 255), (np.uint8, 1), (np.bool_, 1), (np.uint16, 65535)]
)
def test_masks_are_certain_at_their_largest_value(
    store: EmbeddingStore, tmp_path: Path, dtype: type, top: int
) -> None:
    mask = ((LABELS > 0) * top).astype(dtype)
    start = open_mask_prompts(save_labels(tmp_path / "m.npy", mask), store)
    tile = store.tile(0)
    truth = (LABELS[0][tile.slices] > 0).repeat(4, 0).repeat(4, 1)
    logits = start.logits(tile)
    assert logits[truth] == pytest.approx(LARGEST_LOGIT, abs=1e-2)
    assert logits[~truth] == pytest.approx(-LARGEST_LOGIT, abs=1e-2)


@pytest.mark.parametrize("view", range(8))
@pytest.mark.parametrize("size", [(64, 64), (40, 60)])
def test_a_view_sees_the_prompt_moved_and_the_padding_is_outside(
    store: EmbeddingStore, tmp_path: Path, view: int, size: tuple[int, int]
) -> None:
    start = open_mask_prompts(save_labels(tmp_path / "p.npy", CHANCES), store)
    tile = Tile(0, 0, 0, *size, view)
    logits = start.logits(tile)
    height, width = tile.low_res_size
    outside = np.ones((256, 256), bool)
    outside[:height, :width] = False
    assert outside.any() == (size[0] != size[1])
    np.testing.assert_allclose(logits[outside], -LARGEST_LOGIT, atol=1e-3)
    if size[0] == size[1]:
        np.testing.assert_allclose(logits, see(start.logits(Tile(0, 0, 0, *size)), view), atol=1e-5)
    else:
        assert np.abs(logits[:height, :width]).mean() < 5


def test_a_dataset_asks_with_the_start_and_nothing_else_and_each_tile_once(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    labels = save_labels(tmp_path / "l.npy", LABELS)
    start = open_mask_prompts(save_labels(tmp_path / "p.npy", CHANCES), store)
    dataset = EmbeddingDataset(store, labels, prompts="mask", start=start, rounds=11)
    batch = collate([dataset[0], dataset[1]])
    assert batch.rounds == 1
    assert batch.prompts.counts == (1, 1)
    assert batch.prompts.point_coords is None
    assert batch.prompts.boxes is None
    assert batch.prompts.mask_input is not None
    assert np.array_equal(batch.prompts.mask_input[0, 0], start.logits(store.tile(int(dataset.tiles[0]))))
    assert prompt_source("mask") == "free"
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.question(0, 0).prompts.masks, dataset.question(0, 0).prompts.masks)


def test_a_start_that_is_missing_or_does_not_fit_is_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    labels = save_labels(tmp_path / "l.npy", LABELS)
    with pytest.raises(ConfigError, match="needs earlier predictions") as caught:
        EmbeddingDataset(store, labels, prompts="mask")
    assert "--start" in (caught.value.hint or "")
    with pytest.raises(LabelError, match=r"start file.*63×95.*64×96"):
        open_mask_prompts(save_labels(tmp_path / "small.npy", CHANCES[:, :63, :95]), store)
    with pytest.raises(LabelError, match="start file cannot be opened"):
        open_mask_prompts(tmp_path / "nothing.npy", store)
    with pytest.raises(LabelError, match="probabilities"):
        open_mask_prompts(save_labels(tmp_path / "logits.npy", CHANCES * 9 - 4), store)


def test_the_labels_are_no_start(store: EmbeddingStore, tmp_path: Path) -> None:
    labels = save_labels(tmp_path / "l.npy", LABELS)
    (tmp_path / "link.npy").symlink_to(labels)
    for path in (labels, tmp_path / "link.npy"):
        with pytest.raises(ConfigError, match="the labels themselves"):
            EmbeddingDataset(store, labels, prompts="mask", start=open_mask_prompts(path, store))


def test_a_start_without_a_labelled_plane_is_refused(tmp_path: Path) -> None:
    three = blob_labels(3, 64, 64)
    store = make_store(tmp_path / "s.zarr", three)
    labels = save_labels(tmp_path / "l.npy", three)
    start = open_mask_prompts(
        save_png_folder(tmp_path / "start", {f"plane_{n}.png": three[n] for n in (1, 2)}), store
    )
    assert start.planes == {1, 2}
    with pytest.raises(LabelError, match="nothing for 1 of the planes"):
        EmbeddingDataset(store, labels, prompts="mask", start=start)
    assert len(EmbeddingDataset(store, labels, prompts="mask", start=start, tiles=[1, 2])) == 2
