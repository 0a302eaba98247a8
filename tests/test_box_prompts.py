"""A user's boxes: laid on planes by name, cut to tiles, moved by views, asked one by one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from result_samples import make_checkpoint, make_store
from training_stores import make_image_store

from embedcache.errors import ConfigError, LabelError
from embedcache.geometry import Tile, see
from embedcache.results import predict, queries
from embedcache.results.queries import user_boxes
from embedcache.results.stitch import Stitcher
from embedcache.sam.decoder import Prompts, upscale_logits
from embedcache.store import EmbeddingStore
from embedcache.train.questions.box_prompts import BoxPrompts, open_boxes


def write_boxes(path: Path, *rows: object, header: str = "plane,x0,y0,x1,y1") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))  # type: ignore[call-overload]
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Two planes of 64 × 100 px in two overlapping tiles each."""
    return make_store(tmp_path_factory.mktemp("store") / "s.zarr", [(64, 100)] * 2, overlap=16)


def test_images_are_found_by_name_or_stem(tmp_path: Path) -> None:
    blank = np.zeros((64, 64), np.uint8)
    store = make_image_store(tmp_path / "s.zarr", {"a.png": blank, "sub/b.tif": blank, "c.png": blank})
    header = "image,x0,y0,x1,y1"
    path = write_boxes(
        tmp_path / "b.csv", ("a.png", 1, 2, 3, 4), ("b.jpg", 5, 6, 7, 8), ("x/b", 1, 1, 2, 2), header=header
    )
    boxes = open_boxes(path, store)
    assert boxes.of_tile(store.tile(0)).tolist() == [[1, 2, 3, 4]]
    assert boxes.of_tile(store.tile(1)).tolist() == [[5, 6, 7, 8], [1, 1, 2, 2]]
    assert len(boxes.of_tile(store.tile(2))) == 0
    assert (boxes.count, boxes.alignment) == (3, "3 boxes on 2 of 3 planes")
    path = write_boxes(tmp_path / "b.csv", *[(name, 1, 1, 2, 2) for name in "xyzx"], header=header)
    with pytest.raises(
        LabelError, match=r"names 3 images .*: x \(line 2\), y \(line 3\), z \(line 4\)\."
    ) as caught:
        open_boxes(path, store)
    assert "There are 3 planes: a.png, sub/b.tif, c.png." in str(caught.value.hint)


def test_a_stem_that_two_images_have_is_refused(tmp_path: Path) -> None:
    blank = np.zeros((64, 64), np.uint8)
    store = make_image_store(tmp_path / "s.zarr", {"a.png": blank, "a.tif": blank})
    header = "image,x0,y0,x1,y1"
    path = write_boxes(tmp_path / "b.csv", ("a", 1, 2, 3, 4), header=header)
    with pytest.raises(LabelError, match=r"could be a\.png, a\.tif"):
        open_boxes(path, store)
    assert open_boxes(write_boxes(tmp_path / "b.csv", ("a.tif", 1, 2, 3, 4), header=header), store).count == 1


def test_planes_have_numbers_and_one_plane_needs_none(tmp_path: Path, store: EmbeddingStore) -> None:
    with pytest.raises(LabelError, match=r"names 1 plane that the store does not have: 2 \(line 2\)"):
        open_boxes(write_boxes(tmp_path / "b.csv", (2, 1, 1, 2, 2)), store)
    nameless = write_boxes(tmp_path / "b.csv", (1, 1, 2, 2), header="x0,y0,x1,y1")
    with pytest.raises(LabelError, match="on which of the 2 planes"):
        open_boxes(nameless, store)
    lone = make_store(tmp_path / "lone.zarr", [(64, 64)])
    assert open_boxes(nameless, lone).of_tile(lone.tile(0)).tolist() == [[1, 1, 2, 2]]


def test_a_box_beyond_its_plane_is_refused_with_the_planes_size(
    tmp_path: Path, store: EmbeddingStore
) -> None:
    for box in [(0, 90, 0, 102, 10), (0, -2, 0, 10, 10), (0, 0, 66, 10, 70), (0, 2000, 0, 2010, 10)]:
        with pytest.raises(
            LabelError, match=r"b\.csv, line 2: the box on .* the plane is 100 px wide and 64 high"
        ):
            open_boxes(write_boxes(tmp_path / "b.csv", box), store)
    rounded = open_boxes(write_boxes(tmp_path / "b.csv", (0, 90, -0.5, 100.4, 64.9)), store)
    assert rounded.of_tile(Tile(0, 0, 36, 64, 64)).tolist() == [[54, 0, 64, 64]]


def test_boxes_given_as_shares_of_the_image_are_refused(tmp_path: Path, store: EmbeddingStore) -> None:
    with pytest.raises(LabelError, match="shares of the image") as caught:
        open_boxes(write_boxes(tmp_path / "b.csv", (0, 0.1, 0.2, 0.5, 1), (1, 0, 0, 0.25, 0.5)), store)
    assert "pixels" in str(caught.value.hint)
    assert open_boxes(write_boxes(tmp_path / "b.csv", (0, 0, 0, 1, 1)), store).count == 1


def test_a_box_is_asked_for_in_every_tile_that_sees_enough_of_it(
    tmp_path: Path, store: EmbeddingStore
) -> None:
    left, right = store.tile(0), store.tile(64)
    assert (left.x0, right.x0) == (0, 36)
    boxes = open_boxes(write_boxes(tmp_path / "b.csv", (0, 30, 10, 70, 20), (0, 61, 0, 97, 4)), store)
    assert boxes.of_tile(left).tolist() == [[30, 10, 64, 20]]  # of the second box only a twelfth
    assert boxes.of_tile(right).tolist() == [[0, 10, 34, 20], [25, 0, 61, 4]]
    assert boxes.tiles(store, [0, 1, 64, 65]).tolist() == [0, 64]


@given(
    st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(0.5, 100), st.floats(0.5, 100)),
    st.integers(16, 64),
)
@settings(max_examples=60, deadline=None)
def test_no_box_is_lost_between_tiles(box: tuple[float, float, float, float], side: int) -> None:
    x, y, w, h = box
    boxes = BoxPrompts("made up", {0: np.array([[x, y, x + w, y + h]])}, "")
    tiles = [Tile(0, j, i, side, side) for j in range(0, 1024, side) for i in range(0, 1024, side)]
    assert any(len(boxes.of_tile(tile)) for tile in tiles)


@given(st.integers(0, 7), st.integers(0, 40), st.integers(0, 30), st.integers(1, 24), st.integers(1, 18))
@settings(max_examples=40, deadline=None)
def test_a_view_moves_boxes_as_it_moves_pixels(view: int, x: int, y: int, w: int, h: int) -> None:
    tile = Tile(0, 0, 0, 48, 64, view)
    boxes = BoxPrompts("made up", {0: np.array([[x, y, x + w, y + h]], float)}, "")
    mask = np.zeros((48, 64), bool)
    mask[y : y + h, x : x + w] = True
    seen = see(mask, view)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    asked = boxes.for_frame(tile).boxes
    assert asked is not None
    np.testing.assert_allclose(asked, [np.array(edges) * 16.0], atol=1e-3)


def test_boxes_are_plain_values_that_a_worker_gets(tmp_path: Path, store: EmbeddingStore) -> None:
    boxes = open_boxes(write_boxes(tmp_path / "b.csv", (0, 30, 10, 70, 20)), store)
    again = pickle.loads(pickle.dumps(boxes))
    np.testing.assert_array_equal(again.of_tile(store.tile(0)), boxes.of_tile(store.tile(0)))


def single(store: EmbeddingStore, decoder: torch.nn.Module, number: int, box: list[float]) -> np.ndarray:
    """The decoder's answer to one box, in tile px."""
    tile = store.tile(number)
    asked = Prompts((1,), boxes=torch.tensor([box]) * 16)
    with torch.inference_mode():
        low = decoder(store[number][None], asked).low_res_logits[0, 0]
    return torch.sigmoid(upscale_logits(low, tile)).numpy()


def test_a_tile_with_several_boxes_has_the_largest_of_their_answers(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 3)
    decoder = store.decoder().eval()
    boxes = [[2.0, 2.0, 20.0, 30.0], [40.0, 8.0, 60.0, 24.0]]
    path = write_boxes(tmp_path / "b.csv", *[(0, *box) for box in boxes], (2, *boxes[1]))
    prompts_of = user_boxes(open_boxes(path, store), store)
    stitcher = Stitcher(store, decoder, np.arange(3), prompts_of)
    tiles = dict(enumerate(values for _, values in stitcher.tiles([0, 1, 2])))
    want = np.maximum(*(single(store, decoder, 0, box) for box in boxes))
    np.testing.assert_allclose(tiles[0], want, atol=1e-5)
    assert (tiles[1] == 0).all()
    np.testing.assert_allclose(tiles[2], single(store, decoder, 2, boxes[1]), atol=1e-5)
    assert (stitcher.plane(1) == 0).all()  # asked for nothing, which is background: not NaN
    alone = Stitcher(store, decoder, np.arange(3), prompts_of, batch_size=1)
    np.testing.assert_allclose(alone.plane(0), tiles[0], atol=1e-5)


def test_more_boxes_than_fit_into_a_call_are_asked_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 2)
    boxes = [(plane, x, y, x + 8, y + 8) for plane in (0, 1) for x in (4, 30) for y in (4, 40)]
    prompts_of = user_boxes(open_boxes(write_boxes(tmp_path / "b.csv", *boxes), store), store)
    stitcher = Stitcher(store, store.decoder().eval(), np.arange(2), prompts_of)
    together = [values for _, values in stitcher.tiles([0, 1])]
    monkeypatch.setattr(queries, "MOST_QUERIES", 3)
    sizes = [(images.start, prompts.queries) for images, prompts in prompts_of([0, 1]).calls()]
    assert sizes == [(0, 3), (0, 1), (1, 3), (1, 1)]
    np.testing.assert_allclose([values for _, values in stitcher.tiles([0, 1])], together, atol=1e-5)


def test_predict_asks_with_a_users_boxes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 2)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, prompts="boxes")
    with pytest.raises(ConfigError, match="boxes") as caught:
        predict(store, checkpoint)
    assert "--boxes" in str(caught.value.hint)
    box = [2.0, 2.0, 20.0, 30.0]
    found = predict(store, checkpoint, boxes=write_boxes(tmp_path / "b.csv", (1, *box)))
    assert (found.prompts, found.to_dict()["prompt_source"]) == ("boxes", "free")
    decoder = checkpoint.decoder().eval()
    np.testing.assert_allclose(found.probabilities(1), single(store, decoder, 1, box), atol=1e-5)
    assert not found[0].any()
    with pytest.raises(ConfigError, match="--boxes"):
        predict(store, checkpoint, prompts="none", boxes=tmp_path / "b.csv")
