"""The dataset: items depend on seed, epoch and tile only, and batches are ragged."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from training_stores import blob_labels, make_store, save_labels

from embedcache.errors import ConfigError, LabelError, MissingTilesError
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.asking.validation import Held, fixed_subset
from embedcache.train.questions.dataset import EmbeddingDataset, collate

LABELS = blob_labels(3, 64, 96)
LABELS[2] = 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """3 planes of two overlapping 64 px tiles; the last plane is empty."""
    return make_store(tmp_path_factory.mktemp("dataset") / "s.zarr", LABELS)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_labels(tmp_path_factory.mktemp("labels") / "l.npy", LABELS)


def test_an_item_is_an_embedding_its_targets_its_weights_and_its_prompts(
    store: EmbeddingStore, labels: Path
) -> None:
    dataset = EmbeddingDataset(store, labels)
    assert len(dataset) == 6
    item = dataset[0]
    assert torch.equal(item.image_embedding, store[item.number])
    assert item.low_res_masks.shape == (1, 256, 256)
    assert set(item.low_res_masks.unique().tolist()) <= {0.0, 1.0}
    assert item.weight.shape == (256, 256)
    assert item.weight.all()
    truth = LABELS[item.tile.plane][item.tile.slices] > 0
    assert torch.equal(item.low_res_masks[0], torch.from_numpy(truth.repeat(4, 0).repeat(4, 1)).float())


@pytest.mark.parametrize("prompts", ["points", "box", "grid", "iterative"])
def test_items_are_drawn_from_seed_epoch_and_tile_alone(
    store: EmbeddingStore, labels: Path, prompts: str
) -> None:
    objects = "whole" if prompts == "grid" else "components"
    one, two = (EmbeddingDataset(store, labels, prompts=prompts, objects=objects, seed=3) for _ in range(2))
    two[1], two[0]
    for field in ("point_coords", "boxes"):
        a, b = getattr(one[2].prompts, field), getattr(two[2].prompts, field)
        assert np.array_equal(a, b)
    one.set_epoch(1)
    if prompts != "grid":
        changed = collate([one[2]]).prompts
        before = collate([two[2]]).prompts
        coords = (changed.point_coords, before.point_coords)
        boxes = (changed.boxes, before.boxes)
        assert any(a is not None and b is not None and not torch.equal(a, b) for a, b in (coords, boxes))


def test_images_with_different_numbers_of_objects_go_through_the_decoder_in_one_call(
    store: EmbeddingStore, labels: Path
) -> None:
    dataset = EmbeddingDataset(store, labels, prompts="box", objects="components", max_objects=2)
    items = [dataset[index] for index in range(len(dataset))]
    batch = collate(items)
    assert len(set(batch.prompts.counts)) > 1
    assert len(batch.low_res_masks) == len(batch.weight) == sum(batch.prompts.counts)
    small = collate([items[batch.prompts.counts.index(1)], items[batch.prompts.counts.index(2)]])
    with torch.inference_mode():
        output = Decoder.random(0)(small.image_embeddings, small.prompts)
    assert output.low_res_logits.shape == (3, 1, 256, 256)


def test_a_tile_asked_without_prompts_wants_everything_positive_however_few_objects_are_drawn(
    store: EmbeddingStore, labels: Path
) -> None:
    dataset = EmbeddingDataset(
        store, labels, prompts="box", objects="components", max_objects=1, free_share=1.0
    )
    item = next(item for item in dataset if item.question.whole.sum() > item.question.targets.sum())
    truth = LABELS[item.tile.plane][item.tile.slices] > 0
    batch = collate([item])
    assert batch.prompts.counts == (1,)
    assert batch.prompts.boxes is None
    assert torch.equal(batch.low_res_masks[0], torch.from_numpy(truth.repeat(4, 0).repeat(4, 1)).float())


def test_a_dataloader_with_workers_gives_the_same_batches(store: EmbeddingStore, labels: Path) -> None:
    dataset = EmbeddingDataset(store, labels, prompts="points")
    plain = list(DataLoader(dataset, batch_size=2, collate_fn=collate))
    spread = list(DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=1))
    for a, b in zip(plain, spread, strict=True):
        assert a.numbers == b.numbers
        assert torch.equal(a.image_embeddings, b.image_embeddings)
        assert a.prompts.point_coords is not None
        assert b.prompts.point_coords is not None
        assert torch.equal(a.prompts.point_coords, b.prompts.point_coords)


def test_a_dataset_can_be_pickled(store: EmbeddingStore, labels: Path) -> None:
    dataset = EmbeddingDataset(store, labels)
    dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1].low_res_masks, dataset[1].low_res_masks)


def test_prompted_objects_leave_out_tiles_without_any(store: EmbeddingStore, labels: Path) -> None:
    dataset = EmbeddingDataset(store, labels, prompts="box", objects="components")
    assert {int(store.table[n, 0]) for n in dataset.tiles} == {0, 1}


def test_wrong_requests_are_refused(store: EmbeddingStore, labels: Path) -> None:
    with pytest.raises(MissingTilesError, match="number 100"):
        EmbeddingDataset(store, labels, tiles=[0, 100])
    with pytest.raises(ConfigError, match="128 exist"):
        EmbeddingDataset(store, labels, tiles=[0, 150])
    with pytest.raises(ConfigError):
        EmbeddingDataset(store, labels, objects="components")
    with pytest.raises(LabelError, match="No encoded tile"):
        EmbeddingDataset(store, labels, tiles=[])


def held(store: EmbeddingStore, labels: Path) -> Held:
    dataset = EmbeddingDataset(store, labels)
    return Held(dataset, tuple(int(n) for n in dataset.tiles))


def test_the_fixed_subset_keeps_tiles_with_positives(store: EmbeddingStore, labels: Path) -> None:
    part = held(store, labels)
    chosen = fixed_subset([part], 3)
    assert sum(len(item.numbers) for item in chosen) == 3
    positive = part.dataset.labels.positive(store, chosen[0].numbers) > 0
    assert positive.sum() >= 1
    assert fixed_subset([part], 3) == chosen
    assert fixed_subset([part], 100) == (part,)
