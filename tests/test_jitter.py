"""Jitter: label edges move a little, a part of a tile may count alone; off it changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_stores import make_store, save_labels

from embedcache.geometry import Tile
from embedcache.store import EmbeddingStore
from embedcache.train.asking.validation import VALIDATION_EPOCH
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.jitter import CUTS, SMALLEST_WINDOW, draw_cut, jitter_window
from embedcache.train.questions.object_table import TileObject
from embedcache.train.questions.targets import CUT, low_res_targets
from embedcache.train.truth.labels import open_labels

LABELS = np.zeros((1, 75, 150), np.uint8)
LABELS[0, 20:50, 13:60] = 255
LABELS[0, 30:66, 90:133] = 255


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingDataset, EmbeddingDataset]:
    """The same tiles without and with jitter."""
    folder = tmp_path_factory.mktemp("jitter")
    store: EmbeddingStore = make_store(folder / "s.zarr", LABELS, tile=75)
    labels = save_labels(folder / "l.npy", LABELS)
    plain, jittered = (
        EmbeddingDataset(store, labels, prompts="iterative", rounds=5, jitter=jitter)
        for jitter in (False, True)
    )
    return plain, jittered


def test_jitter_changes_targets_and_weights_and_no_other_draw(
    datasets: tuple[EmbeddingDataset, EmbeddingDataset],
) -> None:
    changed = {"targets": 0, "weight": 0}
    for epoch in range(12):
        plain, jittered = (dataset.question(0, epoch) for dataset in datasets)
        assert torch.equal(plain.draws, jittered.draws)
        assert (plain.speaks, plain.begins_with_box) == (jittered.speaks, jittered.begins_with_box)
        assert plain.prompts.boxes is not None
        assert jittered.prompts.boxes is not None
        assert np.array_equal(plain.prompts.boxes, jittered.prompts.boxes)
        changed["targets"] += not torch.equal(plain.targets, jittered.targets)
        changed["weight"] += not torch.equal(plain.weight, jittered.weight)
        assert jittered.weight.any()
        assert (jittered.weight <= plain.weight).all()
        edge = (plain.targets != jittered.targets)[0].numpy()
        grown = np.zeros_like(edge)
        inside = plain.targets[0].numpy() > 0
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(inside, step, axis) != inside
        assert not (edge & ~grown).any()  # only cells of the edge change
    assert changed["targets"] > 6
    assert 2 <= changed["weight"] <= 10


def test_validation_is_asked_without_jitter(datasets: tuple[EmbeddingDataset, EmbeddingDataset]) -> None:
    plain, _ = datasets
    tile = plain.store.tile(0)
    truth = LABELS[0][tile.slices] > 0
    question = plain.question(0, VALIDATION_EPOCH)
    targets, weight = low_res_targets(truth[None], None, tile)
    assert np.array_equal(question.whole, targets[0])
    assert np.array_equal(question.weight, weight)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_cut_moves_an_edge_by_a_tenth_of_a_cell_at_most(seed: int) -> None:
    cut = draw_cut(np.random.default_rng(seed))
    assert CUTS[0] <= cut <= CUTS[1]
    tile = Tile(0, 0, 0, 1024, 1024)
    mask = np.zeros((1024, 1024), bool)
    mask[:, :512] = True
    rng = np.random.default_rng(seed)
    mask[:, 508:512] = rng.random((1024, 4)) < rng.random((1024, 1))
    thing = [TileObject.of_mask(mask)]
    found, _ = low_res_targets(thing, None, tile, cut=cut)
    half, _ = low_res_targets(thing, None, tile)
    share = mask.reshape(256, 4, 256, 4).mean(axis=(1, 3))
    assert np.array_equal(found[0], share >= cut)
    assert np.array_equal(half[0], share >= CUT)


@given(st.integers(0, 10_000), st.integers(1, 256), st.integers(1, 256), st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_window_keeps_half_of_the_content_or_more_and_never_nothing(
    seed: int, rows: int, columns: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = np.zeros((256, 256), np.uint8)
    weight[:rows, :columns] = 1
    window = jitter_window(weight, rng)
    assert window.sum() >= SMALLEST_WINDOW * weight.sum() - 1e-9
    assert (window <= weight).all()
    inside_rows, inside_columns = window.any(axis=1), window.any(axis=0)
    assert window.sum() == inside_rows.sum() * inside_columns.sum()  # a rectangle
    holes = weight * (rng.random((256, 256)) < share)
    assert jitter_window(holes, rng).any() == holes.any()


def test_a_window_that_would_miss_all_that_counts_is_none() -> None:
    weight = np.zeros((256, 256), np.uint8)
    weight[0, 0] = weight[255, 255] = 1
    kept = [int(jitter_window(weight, np.random.default_rng(seed)).sum()) for seed in range(200)]
    assert set(kept) == {1, 2}


def test_half_of_the_draws_have_a_window_and_their_number_is_the_same() -> None:
    weight = np.ones((256, 256), np.uint8)
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    windows = [jitter_window(weight, rng).sum() < weight.sum() for rng in rngs]
    assert 100 < sum(windows) < 200
    after = [rng.random() for rng in rngs]
    fresh = [np.random.default_rng(seed).random(6)[5] for seed in range(300)]
    assert after == fresh


@pytest.mark.parametrize("prompts", ["points", "box", "iterative"])
def test_a_window_never_cuts_what_a_prompt_points_to(tmp_path: Path, prompts: str) -> None:
    spots = np.zeros((1, 128, 128), np.uint8)
    spots[0, 4:12, 4:12] = spots[0, 100:110, 90:99] = 255
    store = make_store(tmp_path / "s.zarr", spots, tile=128)
    labels = save_labels(tmp_path / "l.npy", spots)
    dataset = EmbeddingDataset(
        store, labels, prompts=prompts, objects="components", max_objects=1, jitter=True, free_share=0.3
    )
    cut = {True: 0, False: 0}
    for epoch in range(60):
        question = dataset.question(0, epoch)
        cut[question.free] += not question.weight.all()
        if not question.free:
            assert (question.targets <= question.weight).all()
    assert min(cut.values()) > 0


def test_a_question_survives_labels_that_hardly_count(tmp_path: Path) -> None:
    speck = np.zeros((1, 64, 64), np.uint8)
    speck[0, 3, 3] = 255
    store = make_store(tmp_path / "s.zarr", speck)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 2:5, 2:5] = 1
    labels = open_labels(
        save_labels(tmp_path / "l.npy", speck), store, supervision=save_labels(tmp_path / "m.npy", mask)
    )
    dataset = EmbeddingDataset(
        store, labels, prompts="iterative", objects="components", rounds=4, jitter=True
    )
    for epoch in range(20):
        question = dataset.question(0, epoch)
        assert question.weight.any()
        assert question.targets.any()
