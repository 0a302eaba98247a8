"""Splits: nothing of validation is seen in training, and both sides have something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_stores import blob_labels, make_image_store, make_store, save_labels, save_png_folder

from embedcache.errors import ConfigError, LabelError
from embedcache.store import EmbeddingStore
from embedcache.train.truth.choice import first_useful
from embedcache.train.truth.held_out import _blocks, _slabs
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.places import Tiles
from embedcache.train.truth.split import Split, make_split

Pair = tuple[EmbeddingStore, Labels]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """20 planes of one tile each, with labels of their own."""
    folder = tmp_path_factory.mktemp("stack")
    labels = blob_labels(20, 32, 32)
    store = make_store(folder / "s.zarr", labels, tile=32)
    return store, open_labels(save_labels(folder / "l.npy", labels), store)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Five images, the last of which is unlabelled black."""
    folder = tmp_path_factory.mktemp("images")
    masks = {f"im_{n}.png": mask for n, mask in enumerate(blob_labels(5, 32, 32))}
    masks["im_4.png"] = masks["im_4.png"] * 0
    store = make_image_store(folder / "s.zarr", masks, tile=32)
    return store, open_labels(save_png_folder(folder / "labels", masks), store)


def planes(pair: Pair, part: tuple[tuple[int, tuple[int, ...]], ...]) -> list[int]:
    return sorted({int(pair[0].table[n, 0]) for _, numbers in part for n in numbers})


def test_planes_with_labels_of_their_own_lose_the_last_fifth_after_a_gap(stack: Pair) -> None:
    split = make_split(*stack)
    assert split.kind == "planes"
    assert planes(stack, split.val) == [16, 17, 18, 19]
    assert planes(stack, split.train) == list(range(15))
    assert "gap of 1" in split.rule


def test_one_plane_is_held_out_in_the_singular(tmp_path: Path) -> None:
    masks = blob_labels(5, 32, 32)
    store = make_store(tmp_path / "s.zarr", masks, tile=32)
    split = make_split(store, open_labels(save_labels(tmp_path / "l.npy", masks), store))
    assert split.rule == "plane 4 is held out, with a gap of 1 beside it, of 5 planes"


def test_planes_that_are_asked_for_are_held_out_without_a_gap_and_it_says_so(stack: Pair) -> None:
    split = make_split(*stack, "16:20")
    assert planes(stack, split.val) == [16, 17, 18, 19]
    assert planes(stack, split.train) == list(range(16))
    assert "no gap" in split.rule
    assert planes(stack, make_split(*stack, "18:").val) == [18, 19]
    with pytest.raises(ConfigError, match="30:40"):
        make_split(*stack, "30:40")


def test_another_share_may_be_asked_for(stack: Pair) -> None:
    assert planes(stack, make_split(*stack, "0.5").val) == list(range(10, 20))


def test_whole_images_are_held_out_and_an_empty_one_alone_is_not_enough(images: Pair) -> None:
    split = make_split(*images)
    assert split.kind == "images"
    assert planes(images, split.val) == [3]
    assert planes(images, split.train) == [0, 1, 2, 4]


def test_images_may_be_named_by_stem_or_name(images: Pair) -> None:
    split = make_split(*images, "im_0, im_2.png")
    assert planes(images, split.val) == [0, 2]
    assert planes(images, split.train) == [1, 3, 4]
    with pytest.raises(ConfigError, match=r"'m_3', .* there are: im_0\.png, im_1\.png") as caught:
        make_split(*images, "im_0,m_3")
    assert str(caught.value.hint).startswith("Did you mean im_3? ")
    with pytest.raises(LabelError, match="positives on both sides"):
        make_split(*images, "im_4")


def test_one_label_for_all_planes_is_split_by_place_alike_on_all_planes(tmp_path: Path) -> None:
    labels = np.broadcast_to(blob_labels(1, 32, 320)[0] | 255, (3, 32, 320))
    store = make_store(tmp_path / "s.zarr", labels, tile=32)
    flat = open_labels(save_png_folder(tmp_path / "p", {"ink.png": labels[0].copy()}) / "ink.png", store)
    split = make_split(store, flat)
    assert split.kind == "spatial"
    val = {(int(store.table[n, 0]), int(store.table[n, 2])) for n in split.val[0][1]}
    assert val == {(plane, x) for plane in range(3) for x in (256, 288)}
    assert max(int(store.table[n, 2]) for n in split.train[0][1]) == 192  # a tile wide is left out


def test_of_several_stores_the_last_is_held_out(stack: Pair, images: Pair) -> None:
    split = make_split([images[0], stack[0]], [images[1], stack[1]])
    assert split.kind == "stores"
    assert [index for index, _ in split.val] == [1]
    assert [index for index, _ in split.train] == [0]
    assert [split.index_of(store) for store in (images[0], stack[0])] == [0, 1]


def test_stores_of_one_volume_are_never_on_both_sides(stack: Pair, images: Pair, tmp_path: Path) -> None:
    split = make_split([stack[0], stack[0]], [stack[1], stack[1]])  # one store with two kinds of labels
    assert split.kind == "planes"
    assert set(planes(stack, split.val)).isdisjoint(planes(stack, split.train))
    assert split.of_store("val", stack[0]).tolist() == sorted(split.val[0][1])
    apart = make_split([images[0], stack[0], stack[0]], [images[1], stack[1], stack[1]])
    assert [index for index, _ in apart.val] == [1, 2]
    twice = make_split([images[0], images[0]], [images[1], images[1]])
    assert set(planes(images, twice.val)).isdisjoint(planes(images, twice.train))
    with pytest.raises(ConfigError, match="a share of arrays"):
        make_split([images[0], stack[0]], [images[1], stack[1]], "0.3")


def test_another_image_folder_is_not_taken_for_the_one_that_trained(images: Pair, tmp_path: Path) -> None:
    split = make_split(*images)
    other = make_image_store(
        tmp_path / "s.zarr", {f"other_{n}.png": m for n, m in enumerate(blob_labels(5, 32, 32))}, tile=32
    )
    assert other.fingerprint == images[0].fingerprint
    assert split.of_store("val", other) is None
    assert split.of_store("val", images[0]) is not None


def test_planes_under_one_label_are_no_secret_and_the_rule_says_so(tmp_path: Path) -> None:
    labels = np.broadcast_to(blob_labels(1, 32, 32)[0], (3, 32, 32))
    store = make_store(tmp_path / "s.zarr", labels, tile=32)
    flat = open_labels(save_labels(tmp_path / "l.npy", labels[:1]), store)
    assert "same label lies on all planes" in make_split(store, flat, "2:3").rule


def test_a_split_survives_json(stack: Pair) -> None:
    split = make_split(*stack)
    assert Split.from_dict(split.to_dict()) == split


def test_a_single_tile_cannot_be_split_and_it_says_what_to_do(tmp_path: Path) -> None:
    labels = blob_labels(1, 32, 32)
    store = make_store(tmp_path / "s.zarr", labels, tile=32)
    with pytest.raises(LabelError, match="smaller tiles"):
        make_split(store, open_labels(save_labels(tmp_path / "l.npy", labels), store))


def test_planes_that_the_encoder_saw_together_are_kept_apart(tmp_path: Path) -> None:
    labels = blob_labels(20, 16, 16) | 255
    store = make_store(tmp_path / "s.zarr", labels, tile=16, channels="adjacent:2")
    pair = store, open_labels(save_labels(tmp_path / "l.npy", labels), store)
    split = make_split(*pair)
    assert min(planes(pair, split.val)) - max(planes(pair, split.train)) > 2 * 2


@st.composite
def scattered(draw: st.DrawFn) -> Tiles:
    """Tiles on a grid with any stride up to the tile's size, some positive."""
    size, stride = 64, draw(st.integers(33, 64))
    rows, columns, depth = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    places = [(z, y * stride, x * stride) for z in range(depth) for y in range(rows) for x in range(columns)]
    table = np.array(places, dtype=np.int64)
    count = len(table)
    positive = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), dtype=np.int64)
    zeros = np.zeros(count, np.int64)
    return Tiles(zeros, np.arange(count), table[:, 0], table[:, 1:], np.full((count, 2), size), positive)


@given(scattered())
@settings(max_examples=80, deadline=None)
def test_no_pixel_is_in_a_training_and_a_validation_tile(stack: Pair, tiles: Tiles) -> None:
    for candidates in (_blocks([stack[0]], tiles, 0.2), _slabs([stack[0]], tiles, 0.2)):
        try:
            choice = first_useful(candidates, tiles)
        except LabelError:
            continue
        assert tiles.positive[choice.val].any()
        assert tiles.positive[choice.train].any()
        assert not (choice.train & choice.val).any()
        for mine in np.flatnonzero(choice.train):
            apart = np.abs(tiles.corner[choice.val] - tiles.corner[mine]) >= 64
            other_plane = tiles.plane[choice.val] != tiles.plane[mine]
            assert (apart.any(axis=1) | (other_plane if choice.kind == "planes" else False)).all()


def test_a_store_of_one_tile_cannot_be_split_and_is_told_so_in_the_singular(tmp_path: Path) -> None:
    labels = blob_labels(1, 64, 64)
    store = make_store(tmp_path / "s.zarr", labels)
    opened = open_labels(save_labels(tmp_path / "l.npy", labels), store)
    with pytest.raises(LabelError, match=r"tried for validation: \d+ places? among 1 tile, 1 of them"):
        make_split([store], [opened])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EmbeddingStore], list[Labels]]:
    """Four stores; the first and the third are of one volume, in two tile sizes."""
    folder = tmp_path_factory.mktemp("four")
    stores, labels = [], []
    for number, (name, tile) in enumerate((("a", 32), ("b", 32), ("a", 64), ("c", 32))):
        masks = blob_labels(1, 64, 64, seed=ord(name))
        (folder / str(number)).mkdir()
        store = make_store(folder / f"{number}/{name}.zarr", masks, tile=tile)
        stores.append(store)
        labels.append(open_labels(save_labels(folder / f"{number}.npy", masks), store))
    return stores, labels


@pytest.mark.parametrize(
    ("spec", "held"),
    [("store:b", {1}), ("store:2", {1}), ("store:c.zarr", {3}), ("store:b, c", {1, 3}), ("store:3", {0, 2})],
)
def test_stores_are_held_out_by_name_or_number_with_all_of_the_same_volume(
    four: tuple[list[EmbeddingStore], list[Labels]], spec: str, held: set[int]
) -> None:
    split = make_split(*four, spec)
    assert split.kind == "stores"
    assert {index for index, _ in split.val} == held
    assert {index for index, _ in split.train} == {0, 1, 2, 3} - held
    assert all(f"{index + 1} (" in split.rule for index in held)


def test_a_number_after_a_hash_is_never_the_name_of_a_fragment(tmp_path: Path) -> None:
    stores, labels = [], []
    for name in ("2", "1"):
        masks = blob_labels(1, 64, 64, seed=int(name))
        stores.append(make_store(tmp_path / f"{name}.zarr", masks, tile=32))
        labels.append(open_labels(save_labels(tmp_path / f"{name}.npy", masks), stores[-1]))
    assert [index for index, _ in make_split(stores, labels, "store:1").val] == [1], (
        "the one that is called 1"
    )
    assert [index for index, _ in make_split(stores, labels, "store:#1").val] == [0]
    with pytest.raises(ConfigError, match="no store is called '#3'"):
        make_split(stores, labels, "store:#3")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("store:x", "no store is called 'x'"),
        ("store:5", "no store is called '5'"),
        ("store:a", "2 stores are called 'a'"),
        ("store:1,b,c", "no store is left to train on"),
    ],
)
def test_a_name_that_means_no_store_or_two_or_all_is_refused_with_the_list(
    four: tuple[list[EmbeddingStore], list[Labels]], spec: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make_split(*four, spec)
    if "called" in says:
        assert "\n  1. volume or a\n  2. volume or b" in caught.value.message


MASKED = blob_labels(2, 64, 128, seed=3)


def masked(folder: Path, mask: np.ndarray, labels: np.ndarray = MASKED, **more: Path) -> Pair:
    """Two planes of 2 × 4 tiles, and a validation mask."""
    store = make_store(folder / "s.zarr", MASKED, tile=32)
    path = save_labels(folder / "v.npy", mask)
    return store, open_labels(save_labels(folder / "l.npy", labels), store, validation=path, **more)  # type: ignore[arg-type]


def test_what_a_validation_mask_touches_validates_and_only_what_lies_in_it_counts(tmp_path: Path) -> None:
    mask = np.zeros((1, 64, 128), np.uint8)
    mask[0, 20:40, 50:70] = 1  # touches two tiles in each row
    store, labels = masked(tmp_path, mask)
    split = make_split(store, labels)
    assert split.kind == "mask"
    ((_, val),), ((_, train),) = split.val, split.train
    touched = {n for n in range(len(store)) if store.table[n, 0] >= 0 and labels.held_out(store.tile(n))}
    assert len(touched) == 8
    assert set(val) == touched
    assert set(train) == {n for n in range(len(store)) if store.table[n, 0] >= 0} - touched
    inner = labels.validating()
    assert inner.validating() is inner
    for number in val:
        tile = store.tile(number)
        inside = np.zeros((64, 128), bool)
        inside[20:40, 50:70] = True
        assert np.array_equal(inner.supervised(tile), inside[tile.slices])
        assert inner.counts(tile)[0] == int((MASKED[tile.plane] * inside)[tile.slices].astype(bool).sum())
        assert labels.supervised(tile).all(), "training's labels are not cut"
    assert "v.npy" in split.rule


@pytest.mark.parametrize("supervised_by_plane", [False, True])
def test_a_place_that_a_mask_holds_out_on_one_plane_is_not_learnt_on_another_with_the_same_label(
    tmp_path: Path, supervised_by_plane: bool
) -> None:
    mask = np.zeros((2, 64, 128), np.uint8)
    mask[1, :, 32:64] = 1
    more = {"supervision": save_labels(tmp_path / "u.npy", np.ones_like(mask))} if supervised_by_plane else {}
    store, labels = masked(tmp_path, mask, MASKED[:1], **more)
    assert labels.same_for_all_planes
    split = make_split(store, labels)
    ((_, val),), ((_, train),) = split.val, split.train
    assert {int(store.table[n, 0]) for n in val} == {1}
    assert 32 not in {int(store.table[n, 2]) for n in train}
    assert {int(store.table[n, 0]) for n in train} == {0, 1}


def test_a_mask_without_positives_or_beside_val_is_refused(tmp_path: Path) -> None:
    store, labels = masked(tmp_path, np.zeros((1, 64, 128), np.uint8))
    with pytest.raises(LabelError, match="holds out nothing"):
        make_split(store, labels)
    with pytest.raises(ConfigError, match="each says what is held out"):
        make_split(store, labels, "0.5")
    all_of_it = save_labels(tmp_path / "all.npy", np.ones((1, 64, 128), np.uint8))
    everything = open_labels(tmp_path / "l.npy", store, validation=all_of_it)
    with pytest.raises(LabelError, match="nothing positive to train on beside"):
        make_split(store, everything)
    with pytest.raises(LabelError, match=r"validation mask .*30×30.*64×128"):
        open_labels(
            tmp_path / "l.npy", store, validation=save_labels(tmp_path / "x.npy", np.ones((1, 30, 30)))
        )


def test_stores_of_one_volume_need_one_validation_mask(
    four: tuple[list[EmbeddingStore], list[Labels]], tmp_path: Path
) -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, :, :32] = 1
    stores, labels = four
    path = save_labels(tmp_path / "v.npy", mask)
    first = open_labels(labels[0].source, stores[0], validation=path)
    with pytest.raises(ConfigError, match="show the same volume"):
        make_split(stores, [first, *labels[1:]])
    second = open_labels(labels[1].source, stores[1], validation=path)
    split = make_split(stores[:2], [labels[0], second])
    assert {index for index, _ in split.val} == {1}
    assert {index for index, _ in split.train} == {0, 1}, "a store without a mask trains whole"
