"""What the reference promises: all of SAM learns, from the same pixels, and is measured as everything else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_stores import make_store

import embedcache as ec
from embedcache.bench.whole import fine_tune_whole
from embedcache.bench.whole_sam import Sam, order_of
from embedcache.errors import InputError, MismatchError
from embedcache.sam.decoder import Prompts
from embedcache.store import EmbeddingStore
from embedcache.train import make_split, open_labels
from embedcache.train.questions.dataset import EmbeddingDataset

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs with a bright square each, and masks of these."""
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(2):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[8 + 16 * number : 40, 12:44] = 255
        noise = rng.integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(np.repeat((noise + mask // 2)[..., None], 3, axis=2)).save(
            folder / f"images/{number}.png"
        )
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> EmbeddingStore:
    return ec.encode(
        folder / "images", store=folder / "s.zarr", model="vit_tiny", tile=SIDE, precision="fp32"
    )


def test_it_begins_where_training_from_the_store_begins(folder: Path, store: EmbeddingStore) -> None:
    sam, labels = Sam.of(store), open_labels(folder / "masks", store)
    with ec.open_volume(folder / "images") as volume, torch.inference_mode():
        pixels = store.spec.preprocess.read(volume, store.tile(0))
        embedding = sam.image_encoder(torch.from_numpy(store.spec.preprocess.to_input(pixels))[None])
        found = sam.decoder(embedding, Prompts.none(1)).low_res_logits
        want = store.decoder()(store[0][None], Prompts.none(1)).low_res_logits
    torch.testing.assert_close(embedding[0], store[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found, want, atol=2e-3, rtol=0)
    assert labels.kind == "semantic"


def test_it_is_measured_on_stitched_planes_without_prompts(folder: Path, store: EmbeddingStore) -> None:
    labels = open_labels(folder / "masks", store)
    split = make_split((store,), (labels,), "1")
    found = fine_tune_whole(store, labels, steps=1, batch_size=1, lr=1e-3, seed=0, split=split)
    assert (found["prompt_source"], found["prompts"], found["tiles"]) == ("free", "none", 1)
    assert 0 <= found["iou"] <= found["dice"] <= 1


def test_gradients_reach_the_first_layer_of_the_encoder(folder: Path, store: EmbeddingStore) -> None:
    sam = Sam.of(store)
    with ec.open_volume(folder / "images") as volume:
        pixels = store.spec.preprocess.read(volume, store.tile(0))
    embedding = sam.image_encoder(torch.from_numpy(store.spec.preprocess.to_input(pixels))[None])
    sam.decoder(embedding, Prompts.none(1)).low_res_logits.square().mean().backward()
    gradient = sam.image_encoder.patch_embed.proj.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_an_epoch_holds_every_tile_with_positives_and_as_many_empty_ones(tmp_path: Path) -> None:
    labels = np.zeros((1, SIDE, 8 * SIDE), np.uint8)
    labels[:, 10:30, 10:30] = labels[:, 10:30, 3 * SIDE + 5 : 3 * SIDE + 25] = 255
    made = make_store(tmp_path / "s.zarr", labels)
    np.save(tmp_path / "l.npy", labels)
    dataset = EmbeddingDataset(made, tmp_path / "l.npy", prompts="none")
    positive = {int(n) for n in dataset.tiles if dataset.labels.positive(made, [int(n)])[0]}
    order = order_of(dataset, 0)
    for epoch in range(3):
        drawn = [next(order) for _ in range(2 * len(positive))]
        assert {number for number, _ in drawn} == {epoch}
        numbers = {number for _, number in drawn}
        assert positive < numbers
        assert len(numbers) == len(drawn)


def test_what_it_cannot_stand_on_is_refused(folder: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    labels = np.zeros((1, SIDE, 2 * SIDE), np.uint8)
    labels[:, 10:30] = 255
    other = make_store(tmp_path / "s.zarr", labels)
    np.save(tmp_path / "l.npy", labels)
    split = make_split((other,), (open_labels(tmp_path / "l.npy", other),), "auto")
    wishes = {"steps": 1, "batch_size": 1, "lr": 1e-3, "seed": 0}
    with pytest.raises(InputError, match="is not there"):
        fine_tune_whole(other, tmp_path / "l.npy", split=split, **wishes)
    with pytest.raises(InputError, match="no tiles of"):
        fine_tune_whole(store, folder / "masks", split=split, **wishes)
    with pytest.raises(MismatchError, match="not those"):
        Sam.of(other)
