"""Prompts: in the 1024 frame, xy, typed as SAM wants them, and honest about their source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import ConfigError
from embedcache.geometry import Tile
from embedcache.train.questions.object_table import TileObject
from embedcache.train.questions.prompts import (
    PROMPTS,
    TilePrompts,
    collate_prompts,
    jittered_boxes,
    make_prompts,
    prompt_source,
    sample_points,
)

TILES = st.builds(Tile, st.just(0), st.just(3), st.just(5), st.integers(16, 300), st.integers(16, 300))


def objects_of(masks: np.ndarray) -> list[TileObject]:
    return [TileObject.of_mask(mask) for mask in masks]


def blobs(tile: Tile, seed: int, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, tile.height, tile.width), bool)
    for mask in masks:
        y, x = rng.integers(0, tile.height - 8), rng.integers(0, tile.width - 8)
        mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = True
    return masks


@given(TILES, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_points_lie_inside_their_objects_when_mapped_back(tile: Tile, seed: int) -> None:
    masks = blobs(tile, seed)
    coords, labels = sample_points(objects_of(masks), tile, np.random.default_rng(seed))
    assert coords.dtype == np.float32
    assert labels.dtype == np.int32
    back = tile.from_frame(coords).round().astype(int)
    for mask, (x, y) in zip(masks, back[:, 0], strict=True):
        assert mask[y, x]


@given(TILES, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_boxes_are_ordered_inside_the_content_and_near_their_objects(tile: Tile, seed: int) -> None:
    masks = blobs(tile, seed)
    boxes = jittered_boxes(objects_of(masks), tile, np.random.default_rng(seed))
    height, width = tile.input_size
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    for mask, box in zip(masks, boxes, strict=True):
        y, x = np.nonzero(mask)
        tight = tile.boxes_to_frame([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (np.abs(box - tight) <= 20 + 1e-3).all()


def test_the_grid_is_sams_point_grid_in_pixels_signed_by_the_truth() -> None:
    tile = Tile(0, 0, 0, 512, 1024)
    mask = np.zeros((1, 512, 1024), bool)
    mask[:, :256] = True
    prompts = make_prompts("grid", mask, tile, np.random.default_rng(0))
    assert prompts.point_coords is not None
    assert prompts.point_labels is not None
    assert prompts.point_coords.shape == (1, 64, 2)
    assert prompts.point_coords.dtype == np.float32
    assert prompts.point_labels.dtype == np.int32
    assert prompts.point_coords[0, 0].tolist() == [64.0, 32.0]
    assert prompts.point_coords[0, :, 0].max() == 960.0
    assert prompts.point_coords[0, :, 1].max() == 480.0  # the content's height; the rest is padding
    assert (prompts.point_labels[0] == (prompts.point_coords[0, :, 1] < 256)).all()
    free = make_prompts("grid:free", mask, tile, np.random.default_rng(0))
    assert free.point_labels is not None
    assert (free.point_labels == 1).all()


def test_only_prompts_that_know_nothing_of_the_truth_are_free() -> None:
    sources = {name: prompt_source(name) for name in (*PROMPTS, "grid:free")}
    assert [name for name, source in sources.items() if source == "free"] == [
        "none",
        "mask",
        "boxes",
        "grid:free",
    ]
    with pytest.raises(ConfigError, match="--prompts is 'text'"):
        prompt_source("text")


def test_free_prompts_are_the_same_whatever_the_truth_is() -> None:
    tile = Tile(0, 0, 0, 64, 64)
    for name in ("none", "grid:free"):
        a, b = (make_prompts(name, blobs(tile, seed, 1), tile, np.random.default_rng(0)) for seed in (1, 2))
        for field in ("point_coords", "point_labels", "boxes"):
            assert np.array_equal(getattr(a, field), getattr(b, field))


def test_images_with_different_numbers_of_objects_make_one_ragged_batch() -> None:
    tile = Tile(0, 0, 0, 64, 64)
    rng = np.random.default_rng(0)
    items = [make_prompts("points", blobs(tile, seed, count), tile, rng) for seed, count in ((1, 3), (2, 1))]
    batch = collate_prompts(items, [3, 1])
    assert batch.counts == (3, 1)
    assert batch.point_coords is not None
    assert batch.point_coords.shape == (4, 1, 2)
    assert batch.point_counts is None
    assert collate_prompts([make_prompts("none", blobs(tile, 1), tile, rng)], [1]).counts == (1,)


def test_rows_of_a_batch_say_how_many_points_they_have_and_whether_a_box() -> None:
    tile = Tile(0, 0, 0, 64, 64)
    drawn = make_prompts("iterative", blobs(tile, 1), tile, np.random.default_rng(0))
    many = make_prompts("grid", blobs(tile, 2, 1), tile, np.random.default_rng(0))
    items = [drawn.one_of(box=False), drawn.one_of(box=True), TilePrompts(), many]
    batch = collate_prompts(items, [2, 2, 1, 1])
    assert batch.point_counts is not None
    assert batch.has_box is not None
    assert batch.point_counts.tolist() == [1, 1, 0, 0, 0, 64]
    assert batch.has_box.tolist() == [False, False, True, True, False, False]
    assert batch.point_coords is not None
    assert drawn.point_coords is not None
    assert np.array_equal(batch.point_coords[:2, :1].numpy(), drawn.point_coords)
    boxes = collate_prompts([drawn.one_of(box=True)], [2])
    assert boxes.point_coords is None
    assert boxes.has_box is None
    assert collate_prompts([TilePrompts()], [1]).boxes is None
