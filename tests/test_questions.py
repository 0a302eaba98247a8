"""Questions: drawn from seed, epoch, store and tile alone, and moved by a view as the pixels are."""

from __future__ import annotations

import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_stores import make_store, save_labels

from embedcache.errors import ConfigError
from embedcache.geometry import Tile, see, see_points
from embedcache.store import EmbeddingStore
from embedcache.train.questions.batch import TileQuestion
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.object_table import TileObject, object_table
from embedcache.train.questions.prompts import TilePrompts, make_prompts
from embedcache.train.questions.targets import low_res_targets
from embedcache.train.truth.labels import open_labels

KINDS = ("none", "points", "box", "grid", "iterative")


def ids_of(seed: int, *size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, np.uint16)
    for number in range(1, 9):
        y, x = rng.integers(0, size[-2] - 4), rng.integers(0, size[-1] - 4)
        ids[..., y : y + rng.integers(3, 20), x : x + rng.integers(3, 20)] = number
    return ids


IDS = np.stack([ids_of(seed, 64, 96) for seed in (1, 2)])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("questions") / "s.zarr", IDS)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_labels(tmp_path_factory.mktemp("labels") / "l.npy", IDS)


def same(one: TileQuestion, two: TileQuestion) -> bool:
    """Whether two questions are equal in every bit."""
    for field in fields(TileQuestion):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, TilePrompts):
            parts = [(getattr(a, part.name), getattr(b, part.name)) for part in fields(TilePrompts)]
            if not all(np.array_equal(x, y) for x, y in parts):
                return False
        elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            return False
    return True


@given(
    st.sampled_from(KINDS),
    st.integers(0, 5),
    st.booleans(),
    st.lists(st.integers(0, 3), max_size=4),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_a_question_depends_on_seed_epoch_store_and_tile_only(
    store: EmbeddingStore,
    labels: Path,
    kind: str,
    epoch: int,
    jitter: bool,
    before: list[int],
    data: st.DataObject,
) -> None:
    def dataset(seed: int = 3, store_index: int = 0) -> EmbeddingDataset:
        return EmbeddingDataset(
            store, labels, prompts=kind, seed=seed, store_index=store_index, max_objects=3, rounds=5,
            jitter=jitter, free_share=0.5,
        )  # fmt: skip

    one, two = dataset(), dataset()
    for index in before:  # whatever was asked before
        two.question(int(two.tiles[index]), epoch + index)
    number = int(one.tiles[data.draw(st.integers(0, len(one) - 1))])
    found = one.question(number, epoch)
    assert same(found, two.question(number, epoch))
    assert not torch.equal(found.draws, one.question(number, epoch + 1).draws)
    assert not torch.equal(found.draws, dataset(seed=4).question(number, epoch).draws)
    assert not torch.equal(found.draws, dataset(store_index=1).question(number, epoch).draws)
    other = next(int(n) for n in one.tiles if n != number)
    assert not torch.equal(found.draws[:1], one.question(other, epoch).draws[:1])


def test_threads_that_ask_at_once_get_the_same_questions(store: EmbeddingStore, labels: Path) -> None:
    dataset = EmbeddingDataset(store, labels, prompts="iterative", rounds=11)
    numbers = [int(n) for n in dataset.tiles] * 5
    expected = [dataset.question(number, epoch) for epoch, number in enumerate(numbers)]
    fresh = EmbeddingDataset(store, labels, prompts="iterative", rounds=11)
    found: dict[int, TileQuestion] = {}

    def ask(first: int) -> None:
        for place in range(first, len(numbers), 4):
            found[place] = fresh.question(numbers[place], place)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[place], question) for place, question in enumerate(expected))


def test_only_iterative_questions_have_rounds(store: EmbeddingStore, labels: Path) -> None:
    for kind in KINDS:
        question = EmbeddingDataset(store, labels, prompts=kind, rounds=11).question(0, 0)
        assert len(question.speaks) == question.draws.shape[1] == (11 if kind == "iterative" else 1)


def test_coins_of_tiles_fall_both_ways_and_on_their_own(store: EmbeddingStore, labels: Path) -> None:
    dataset = EmbeddingDataset(store, labels, prompts="iterative", free_share=0.5)
    coins = [(q.begins_with_box, q.free) for q in (dataset.question(0, epoch) for epoch in range(40))]
    assert set(coins) == {(box, free) for box in (True, False) for free in (True, False)}
    plain = EmbeddingDataset(store, labels, prompts="iterative")
    assert not any(plain.question(0, epoch).free for epoch in range(40))


def test_what_no_target_cell_shows_is_not_pointed_to(tmp_path: Path) -> None:
    dust = np.zeros((2, 2048, 2048), np.uint16)
    rng = np.random.default_rng(0)
    for number in range(1, 41):
        side = 6 if number <= 30 else 20  # a cell of the targets is 8 px wide
        y, x = rng.integers(0, 2020, 2)
        dust[0, y : y + side, x : x + side] = number
    dust[1, 77:79, 77:79] = 1
    store = make_store(tmp_path / "s.zarr", dust, tile=2048)
    labels = save_labels(tmp_path / "l.npy", dust)
    dataset = EmbeddingDataset(
        store, labels, prompts="iterative", objects="ids", max_objects=40, task="instances"
    )
    first, second = (dataset.question(int(number), 0) for number in dataset.tiles)
    assert 5 <= len(first.targets) <= 10
    assert first.targets.flatten(1).any(dim=1).all()
    assert first.prompts.point_labels is not None
    assert (first.prompts.point_labels == 1).all()
    assert len(first.draws) == len(first.targets) == len(first.prompts.point_labels)
    assert len(second.targets) == 1  # nothing but a speck: asked as an empty tile is
    assert not second.targets.any()
    assert second.prompts.point_labels is not None
    assert second.prompts.point_labels.tolist() == [[0]]


def test_whether_views_may_be_drawn_changes_no_other_draw(store: EmbeddingStore, labels: Path) -> None:
    with_views, without = (
        EmbeddingDataset(store, labels, prompts="iterative", rounds=5, views=views) for views in (True, False)
    )
    for number in map(int, without.tiles):
        assert same(with_views.question(number, 1), without.question(number, 1))
        assert with_views.drawn(number, 1) == number


SIDES = st.integers(17, 90)


@given(st.integers(0, 100), SIDES, SIDES, st.integers(0, 7), st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_is_asked_of_a_view_is_what_is_asked_of_the_base_moved_by_the_view(
    seed: int, height: int, width: int, view: int, some: bool
) -> None:
    ids = ids_of(seed, height, width)
    supervised = np.random.default_rng(seed).random((height, width)) < 0.7 if some else None
    base, viewed = Tile(0, 5, 9, height, width), Tile(0, 5, 9, height, width, view)
    table = object_table(ids, supervised, "ids")
    objects = table.draw(8, np.random.default_rng(0))

    moved = None if supervised is None else see(supervised, view)
    again = object_table(see(ids, view), moved, "ids")
    pieces = [thing.seen(view) for thing in (*objects, table.whole())]
    targets, weight = low_res_targets(pieces, moved, viewed)
    plain, plain_weight = low_res_targets(
        [*again.draw(8, np.random.default_rng(0)), again.whole()], moved, viewed.seen
    )
    assert np.array_equal(targets, plain)
    assert np.array_equal(weight, plain_weight)

    here, there = (make_prompts("points", objects, t, np.random.default_rng(1)) for t in (base, viewed))
    assert here.point_coords is not None
    assert there.point_coords is not None
    pixels = base.from_frame(here.point_coords).round()
    seen = viewed.seen.from_frame(there.point_coords).round()
    assert np.array_equal(see_points(pixels, (height, width), view), seen)
    assert np.array_equal(here.point_labels, there.point_labels)

    boxes = make_prompts("box", objects, viewed, np.random.default_rng(1)).boxes
    assert boxes is not None
    for piece, box in zip(pieces, boxes, strict=False):
        y, x = np.nonzero(piece.mask())
        tight = viewed.seen.boxes_to_frame([x.min(), y.min(), x.max() + 1, y.max() + 1]) if len(y) else None
        assert tight is None or (np.abs(box - tight) <= 20 + 1e-3).all()


@given(st.integers(0, 100), st.sampled_from([32, 64, 96, 128]), st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_targets_of_a_square_tiles_view_are_the_bases_targets_moved(seed: int, side: int, view: int) -> None:
    mask = ids_of(seed, side, side) > 0
    supervised = np.random.default_rng(seed).random((side, side)) < 0.7
    thing = TileObject.of_mask(mask & supervised)
    base = low_res_targets([thing], supervised, Tile(0, 0, 0, side, side))
    seen = low_res_targets([thing.seen(view)], see(supervised, view), Tile(0, 0, 0, side, side, view))
    for one, two in zip(base, seen, strict=True):
        assert np.array_equal(see(one, view), two)


@given(st.integers(0, 100), SIDES, SIDES)
@settings(max_examples=25, deadline=None)
def test_an_objects_target_is_the_same_from_its_box_as_from_the_whole_tile(
    seed: int, height: int, width: int
) -> None:
    tile = Tile(0, 0, 0, height, width)
    table = object_table(ids_of(seed, height, width), None, "ids", min_pixels=1)
    objects = table.draw(8, np.random.default_rng(0))
    pieces, _ = low_res_targets(objects, None, tile)
    whole, _ = low_res_targets(np.stack([thing.mask() for thing in objects]), None, tile)
    assert np.array_equal(pieces, whole)


def with_views(path: Path) -> EmbeddingStore:
    """A store with all eight views; the last tile has view 0 and view 5 only."""
    store = make_store(path, IDS)
    last = int(np.flatnonzero(store.base)[-1])
    with store.writer() as writer:
        writer.add_views(range(8))
        store = EmbeddingStore.open(path)
        chosen = np.asarray(store.table[:, 0] >= 0)
        writer.add_selection({"z_range": None}, chosen)
        bases = store.base_of(np.arange(len(store)))
        missing = chosen & ~store.committed & ((bases != last) | (store.view_of == 5))
        for shard in np.unique(np.flatnonzero(missing) // store.shard_tiles).tolist():
            numbers = [n for n in np.flatnonzero(missing).tolist() if n // store.shard_tiles == shard]
            writer.commit_shard(
                shard,
                embeddings={n: np.full((256, 64, 64), n, np.float16) for n in numbers},
                input_digests={n: f"{n:064x}" for n in numbers},
            )
    return EmbeddingStore.open(path)


def test_questions_draw_the_committed_views_of_a_tile_and_are_turned_as_these(
    tmp_path: Path, labels: Path
) -> None:
    store = with_views(tmp_path / "v.zarr")
    counted = np.ones(IDS.shape, np.uint8)
    counted[:, :16, 8:40] = 0
    mask = save_labels(tmp_path / "mask.npy", counted)
    opened = open_labels(labels, store, supervision=mask)
    dataset = EmbeddingDataset(store, opened, prompts="points", objects="whole", views=True)
    assert dataset.tiles.tolist() == np.flatnonzero(store.base).tolist()
    views = {number: set() for number in map(int, dataset.tiles)}
    for number in views:
        for epoch in range(60):
            question = dataset.question(number, epoch)
            tile = store.tile(question.number)
            assert question.number == dataset.drawn(number, epoch) == store.views_of(number)[tile.view]
            assert (question.key.number, question.tile) == (number, tile.seen)
            views[number].add(tile.view)
            counts = see(counted[tile.plane][tile.slices], tile.view)
            truth = see(IDS[tile.plane][tile.slices] > 0, tile.view) & (counts > 0)
            assert np.array_equal(question.weight, counts.repeat(4, 0).repeat(4, 1))
            assert np.array_equal(question.targets[0], truth.repeat(4, 0).repeat(4, 1))
            assert question.prompts.point_coords is not None
            x, y = tile.from_frame(question.prompts.point_coords[0, 0]).round().astype(int)
            assert truth[y, x]
    *others, last = views.values()
    assert last == {0, 5}
    assert all(found == set(range(8)) for found in others)
    item = next(dataset.item(n, e) for n in views for e in range(60) if dataset.drawn(n, e) != n)
    assert (item.image_embedding == item.number).all()
    with pytest.raises(ConfigError, match="some of the tiles that were given are views"):
        EmbeddingDataset(store, labels, tiles=np.flatnonzero(store.committed), views=True)
    never = EmbeddingDataset(store, labels, prompts="points", objects="whole")
    assert all(never.drawn(number, epoch) == number for number in views for epoch in range(20))
