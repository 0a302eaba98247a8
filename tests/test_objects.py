"""Objects: the whole mask, its components or its ids, numbered once for each tile; none is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from embedcache.errors import ConfigError
from embedcache.geometry import Tile, see
from embedcache.train.questions.object_table import MIN_PIXELS, TileObject, object_table
from embedcache.train.questions.objects import check_objects, default_objects
from embedcache.train.questions.prompts import make_prompts
from embedcache.train.questions.targets import low_res_targets

SIZES = st.tuples(st.integers(3, 60), st.integers(3, 60))


def ids_of(seed: int, size: tuple[int, int], step: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, np.int32)
    for number in range(1, 7):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        ids[y : y + rng.integers(1, 15), x : x + rng.integers(1, 15)] = number * step
    return ids


def test_objects_are_the_whole_mask_its_components_or_its_ids() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[:8, :8], labels[20:30, 20:30], labels[:8, 20:30] = 5, 5, 9
    tables = {kind: object_table(labels, None, kind) for kind in ("whole", "components", "ids")}
    assert {kind: len(table) for kind, table in tables.items()} == {"whole": 1, "components": 3, "ids": 2}
    for table in tables.values():
        drawn = [thing.mask() for thing in table.draw(8, np.random.default_rng(0))]
        assert (np.any(drawn, axis=0) == (labels > 0)).all()
        assert table.sizes.tolist() == [mask.sum() for mask in drawn]
    half = np.ones((40, 40), bool)
    half[:, 20:] = False
    assert object_table(labels, half, "whole").whole().mask().sum() == 64


@given(st.integers(0, 1000), SIZES, st.sampled_from([1, 977, 10**8]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_table_holds_the_ids_that_are_large_enough_and_the_whole_is_the_union_of_all(
    seed: int, size: tuple[int, int], step: int, some: bool
) -> None:
    ids = ids_of(seed, size, step)
    supervised = np.random.default_rng(seed + 1).random(size) < 0.8 if some else None
    counted = ids if supervised is None else np.where(supervised, ids, 0)
    table = object_table(ids, supervised, "ids")
    large = [i for i in np.unique(counted[counted > 0]) if (counted == i).sum() >= MIN_PIXELS]
    assert [table.object(number + 1).mask().tolist() for number in range(len(table))] == [
        (counted == i).tolist() for i in large
    ]
    assert (table.whole().mask() == (counted > 0)).all()


@given(st.integers(0, 1000), SIZES)
@settings(max_examples=25, deadline=None)
def test_components_are_those_of_the_tile(seed: int, size: tuple[int, int]) -> None:
    mask = ids_of(seed, size) > 0
    numbered, count = ndimage.label(mask)
    table = object_table(mask, None, "components", min_pixels=1)
    assert len(table) == count
    for number in range(1, count + 1):
        assert (table.object(number).mask() == (numbered == number)).all()


@given(st.integers(0, 1000), SIZES, st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_an_object_of_a_view_is_the_object_moved_by_the_view(
    seed: int, size: tuple[int, int], view: int
) -> None:
    table = object_table(ids_of(seed, size), None, "ids", min_pixels=1)
    for thing in table.draw(8, np.random.default_rng(0)):
        assert (thing.seen(view).mask() == see(thing.mask(), view)).all()


def test_of_too_many_objects_some_are_drawn_anew_by_the_seed() -> None:
    table = object_table(ids_of(3, (60, 60)), None, "ids", min_pixels=1)
    assert len(table) > 3
    corners = {
        tuple(thing.corner for thing in table.draw(2, np.random.default_rng(seed))) for seed in range(10)
    }
    assert len(corners) > 1
    assert all(len(drawn) == 2 for drawn in corners)


@pytest.mark.parametrize("objects", ["whole", "components", "ids"])
@pytest.mark.parametrize("pixels", [0, 1, MIN_PIXELS - 1])
def test_specks_and_empty_tiles_are_asked_for_as_one_and_break_nothing(objects: str, pixels: int) -> None:
    tile = Tile(0, 0, 0, 50, 70)
    labels = np.zeros((50, 70), np.int32)
    labels.flat[[i * 97 for i in range(pixels)]] = 3
    drawn = object_table(labels, None, objects).draw(8, np.random.default_rng(0))
    assert len(drawn) == 1
    assert (drawn[0].mask() == (labels > 0)).all()
    prompts = make_prompts("iterative", drawn, tile, np.random.default_rng(0))
    assert prompts.point_coords is not None
    assert prompts.point_labels is not None
    assert prompts.boxes is not None
    assert np.isfinite(prompts.point_coords).all()
    assert np.isfinite(prompts.boxes).all()
    assert prompts.point_labels.tolist() == [[int(pixels > 0)]]
    targets, weight = low_res_targets(drawn, None, tile)
    assert targets.shape == (1, 256, 256)
    assert weight.any()


def test_a_point_that_stands_for_an_empty_object_lies_where_labels_count() -> None:
    supervised = np.zeros((50, 70), bool)
    supervised[10:12, 60:63] = True
    empty = [TileObject.of_mask(np.zeros((50, 70), bool))]
    tile = Tile(0, 0, 0, 50, 70)
    for seed in range(10):
        prompts = make_prompts("points", empty, tile, np.random.default_rng(seed), supervised)
        assert prompts.point_coords is not None
        x, y = tile.from_frame(prompts.point_coords[0, 0]).round().astype(int)
        assert supervised[y, x]
    nowhere = make_prompts("points", empty, tile, np.random.default_rng(0), np.zeros((50, 70), bool))
    assert nowhere.point_coords is not None


def test_several_objects_without_a_prompt_are_refused_since_nothing_tells_them_apart() -> None:
    assert default_objects("instances", "none") == "whole"
    assert default_objects("instances", "box") == "ids"
    with pytest.raises(ConfigError, match="without a prompt"):
        check_objects("components", "semantic", "none")
    with pytest.raises(ConfigError, match="--prompts mask"):
        check_objects("ids", "instances", "mask")
    with pytest.raises(ConfigError, match="instance labels"):
        check_objects("ids", "semantic", "box")
