from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from result_samples import add_views, make_checkpoint, make_store

from embedcache.errors import ConfigError, InputError, LabelError, MismatchError
from embedcache.results import evaluate, predict
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train import make_split, open_labels
from embedcache.train.adapter import AdaptedDecoder
from embedcache.volume import Preprocess

SIZES = [(64, 96)] * 2


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return make_store(tmp_path / "s.zarr", SIZES)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    truth = np.random.default_rng(3).random((2, 64, 96)) < 0.3
    np.save(tmp_path / "ink.npy", truth.astype(np.uint8) * 255)
    return tmp_path / "ink.npy"


def by_hand(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def test_figures_are_those_of_the_stitched_masks(tmp_path: Path, store: EmbeddingStore, labels: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, threshold=-0.5)
    found = evaluate(store, labels, checkpoint=checkpoint, split="all").to_dict()
    prediction = predict(store, checkpoint)
    truth = np.load(labels) > 0
    masks = np.stack(list(prediction))
    assert found["dice"] == pytest.approx(by_hand(masks, truth))
    assert found["precision"] == pytest.approx((masks & truth).sum() / masks.sum())
    assert (found["split"], found["prompt_source"], found["tiles"]) == ("all", "free", 4)


def test_without_a_run_the_baseline_is_the_stores_own_decoder_at_logit_zero(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    untrained = make_checkpoint(tmp_path / "u.safetensors", store, state=store.decoder_state())
    wanted = np.stack(list(predict(store, untrained, threshold=0.5)))
    trained = make_checkpoint(tmp_path / "c.safetensors", store, threshold=-0.5)
    found = evaluate(store, labels, checkpoint=trained, split="all").to_dict()
    assert found["baseline"]["dice"] == pytest.approx(by_hand(wanted, np.load(labels) > 0))
    assert found["baseline"]["threshold"] == 0.5
    assert found["baseline"]["dice"] != found["dice"]


def test_of_a_run_the_untrained_decoder_has_its_best_threshold_too(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    trained = make_checkpoint(tmp_path / "c.safetensors", store, state=store.decoder_state(), threshold=-0.5)
    (tmp_path / "baseline.json").write_text('{"threshold": -0.5}')
    found = evaluate(store, labels, checkpoint=trained, split="all")
    assert found.figures == found.baseline  # nothing was learnt, and nothing is gained
    assert found.baseline_threshold == found.threshold


def test_the_checkpoints_own_split_is_used_again(tmp_path: Path, store: EmbeddingStore, labels: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    val, train = (evaluate(store, labels, checkpoint=checkpoint, split=part) for part in (None, "train"))
    assert (val.split, val.tiles, val.rule) == ("val", 2, "the second half is held out")
    assert (train.split, train.tiles) == ("train", 2)


def test_without_a_checkpoint_the_figures_are_the_untrained_decoders(
    store: EmbeddingStore, labels: Path
) -> None:
    found = evaluate(store, labels)
    assert found.figures == found.baseline
    assert (found.split, found.tiles, found.threshold) == ("all", 4, 0.5)


def test_a_threshold_is_taken_as_it_is_with_or_without_a_checkpoint(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    untrained = make_checkpoint(tmp_path / "u.safetensors", store, state=store.decoder_state())
    masks = np.stack(list(predict(store, untrained, threshold=0.47)))
    found = evaluate(store, labels, threshold=0.47)
    assert found.figures.dice == pytest.approx(by_hand(masks, np.load(labels) > 0))
    assert found.figures != found.baseline
    everything = evaluate(store, labels, prompts="box", threshold=0.0)
    assert everything.figures.recall == 1.0


def test_without_a_checkpoint_val_is_what_training_would_hold_out(tmp_path: Path) -> None:
    store = make_store(tmp_path / "p.zarr", [(40, 40)] * 3, uniform=False)
    (tmp_path / "ink").mkdir()
    for number in range(3):
        Image.new("L", (40, 40), 255).save(tmp_path / "ink" / f"image_{number}.png")
    split = make_split(store, open_labels(tmp_path / "ink", store))
    found = evaluate(store, tmp_path / "ink", split="val")
    assert (found.tiles, found.rule) == (len(split.val[0][1]), split.rule)


def test_a_store_that_was_never_trained_on_is_evaluated_whole(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    other = make_store(tmp_path / "o.zarr", SIZES, volume={"kind": "npy", "shape": [2, 64, 96]})
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    found = evaluate(other, labels, checkpoint=checkpoint)
    assert (found.split, found.tiles) == ("all", 4)
    assert "not trained on this store" in found.rule
    with pytest.raises(ConfigError, match="was not trained on"):
        evaluate(other, labels, checkpoint=checkpoint, split="val")


def test_overlapping_tiles_count_no_pixel_twice(tmp_path: Path, labels: Path) -> None:
    store = make_store(tmp_path / "s.zarr", SIZES, overlap=24)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    found = evaluate(store, labels, checkpoint=checkpoint, split="all")
    masks, truth = np.stack(list(predict(store, checkpoint))), np.load(labels) > 0
    assert found.figures.dice == pytest.approx(by_hand(masks, truth))


def test_only_supervised_pixels_count(tmp_path: Path, store: EmbeddingStore, labels: Path) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 10:50] = 255
    np.save(tmp_path / "mask.npy", mask)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    found = evaluate(store, labels, checkpoint=checkpoint, split="all", supervision=tmp_path / "mask.npy")
    masks, truth = np.stack(list(predict(store, checkpoint))), np.load(labels) > 0
    assert found.figures.dice == pytest.approx(by_hand(masks & (mask > 0), truth & (mask > 0)))


def test_views_change_no_figure(tmp_path: Path, store: EmbeddingStore, labels: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    before = [evaluate(store, labels, checkpoint=checkpoint, split=part).to_dict() for part in ("val", "all")]
    add_views(store)
    assert store.base.sum() * 2 == store.committed.sum()
    after = [evaluate(store, labels, checkpoint=checkpoint, split=part).to_dict() for part in ("val", "all")]
    assert after == before


def test_a_checkpoint_with_an_adapter_is_evaluated_through_it(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    state = AdaptedDecoder.around(Decoder.random(1)).state_dict()
    adapted = make_checkpoint(tmp_path / "a.safetensors", store, state=state, adapter=True)
    plain = make_checkpoint(tmp_path / "b.safetensors", store)
    for prompts in ("none", "box"):
        found, want = (evaluate(store, labels, checkpoint=c, prompts=prompts) for c in (adapted, plain))
        assert found.figures.dice == pytest.approx(want.figures.dice, abs=1e-3)


def test_figures_on_tiles_that_were_learnt_by_heart_are_named(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    numbers = np.flatnonzero(store.committed).tolist()
    split = {"kind": "overfit", "rule": "by heart", "train": [[0, numbers]], "val": [[0, numbers]]}
    checkpoint = make_checkpoint(
        tmp_path / "c.safetensors", store, split=split | {"stores": [store.fingerprint]}
    )
    assert evaluate(store, labels, checkpoint=checkpoint).to_dict()["split"] == "overfit"


def test_masks_to_start_from_are_free_prompts_and_must_be_given(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    with pytest.raises(ConfigError, match="earlier predictions"):
        evaluate(store, labels, checkpoint=checkpoint, prompts="mask")
    predict(store, checkpoint, tmp_path / "p.zarr", probabilities=True)
    found = evaluate(store, labels, checkpoint=checkpoint, prompts="mask", start=tmp_path / "p.zarr")
    assert (found.prompts, found.prompt_source, found.counted) == ("mask", "free", "stitched pixels")
    without = evaluate(store, labels, checkpoint=checkpoint)
    assert found.figures != without.figures


def test_a_value_that_the_run_ignored_is_ignored_again(tmp_path: Path, store: EmbeddingStore) -> None:
    values = np.zeros((2, *SIZES[0]), np.uint8)
    values[:, 10:40, 10:60] = 1
    np.save(tmp_path / "plain.npy", values)
    values[:, 45:, :] = 255
    np.save(tmp_path / "ignored.npy", values)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, settings={"ignore": 255})
    mask = np.ones((2, *SIZES[0]), np.uint8)
    mask[:, 45:, :] = 0
    np.save(tmp_path / "mask.npy", mask)
    found = evaluate(store, tmp_path / "ignored.npy", checkpoint=checkpoint)
    want = evaluate(store, tmp_path / "plain.npy", checkpoint=checkpoint, supervision=tmp_path / "mask.npy")
    assert found.figures == want.figures


def test_prompts_from_the_truth_are_named_oracle(tmp_path: Path, store: EmbeddingStore, labels: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    found = evaluate(store, labels, checkpoint=checkpoint, prompts="box").to_dict()
    assert (found["prompt_source"], found["prompts"], found["counted"]) == ("oracle", "box", "objects")


def test_a_semantic_checkpoint_trained_with_oracle_prompts_is_measured_free(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, prompts="points", prompt_source="free")
    assert evaluate(store, labels, checkpoint=checkpoint).prompt_source == "free"


def test_another_embedding_space_is_refused(tmp_path: Path, store: EmbeddingStore, labels: Path) -> None:
    other = make_store(tmp_path / "o.zarr", SIZES, preprocess=Preprocess("repeat", (0.0, 99.0)))
    with pytest.raises(MismatchError):
        evaluate(other, labels, checkpoint=make_checkpoint(tmp_path / "c.safetensors", store))


def test_wrong_stores_labels_and_splits_are_refused(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    with pytest.raises(InputError, match="no store"):
        evaluate(labels, labels)
    with pytest.raises(LabelError):
        evaluate(store, tmp_path / "missing.npy")
    with pytest.raises(ConfigError, match="--split"):
        evaluate(store, labels, split="test")


def test_of_a_run_with_a_validation_mask_only_what_lies_in_it_counts(
    tmp_path: Path, store: EmbeddingStore, labels: Path
) -> None:
    mask = np.zeros((2, 64, 96), np.uint8)
    mask[1, 10:50, 5:40] = 1
    np.save(tmp_path / "v.npy", mask)
    opened = open_labels(labels, store, validation=tmp_path / "v.npy")
    split = make_split(store, opened)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, split=split.to_dict())
    with pytest.raises(ConfigError, match="opened without that mask"):  # nobody says where the mask is
        evaluate(store, labels, checkpoint=checkpoint)
    with pytest.raises(ConfigError, match="opened without that mask"):
        evaluate(store, open_labels(labels, store), checkpoint=checkpoint)
    (tmp_path / "config.json").write_text(json.dumps({"options": {"validation": str(tmp_path / "v.npy")}}))
    found = evaluate(store, labels, checkpoint=checkpoint)
    masks, truth = np.stack(list(predict(store, checkpoint))), np.load(labels) > 0
    assert found.figures.dice == pytest.approx(by_hand(masks & (mask > 0), truth & (mask > 0)))
    assert evaluate(store, opened, checkpoint=checkpoint) == found
    everywhere = evaluate(store, labels, checkpoint=checkpoint, split="all").figures
    assert everywhere.dice == pytest.approx(by_hand(masks, truth))
