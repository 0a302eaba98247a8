from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.volume import Selection, TileGrid, Volume, open_volume, select

SIDES = st.integers(1, 150)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    tile = draw(st.none() | st.integers(1, 70))
    return TileGrid(tile, 0 if tile is None else draw(st.integers(0, min(tile - 1, 40))))


def keys(table: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in table.tolist()]


@settings(deadline=None)
@given(grids(), SIDES, SIDES)
def test_every_pixel_of_a_plane_lies_in_a_tile_and_every_tile_in_the_plane(
    grid: TileGrid, height: int, width: int
) -> None:
    covered = np.zeros((height, width), bool)
    side = grid.tile or max(height, width)
    for y0, x0, h, w in grid.boxes(height, width).tolist():
        assert min(y0, x0) >= 0
        assert y0 + h <= height
        assert x0 + w <= width
        assert (h, w) == (min(side, height), min(side, width))
        covered[y0 : y0 + h, x0 : x0 + w] = True
    assert covered.all()


@settings(deadline=None)
@given(grids(), SIDES, SIDES)
def test_tiles_are_counted_without_making_them(grid: TileGrid, height: int, width: int) -> None:
    assert grid.count(height, width) == len(grid.boxes(height, width))
    assert TileGrid(16).count(2**62, 2**62) == 2**116
    with pytest.raises(VolumeError):
        grid.count(0, width)


@settings(deadline=None)
@given(grids(), SIDES)
def test_neighbouring_tiles_share_at_least_the_overlap(grid: TileGrid, height: int) -> None:
    starts = grid.boxes(height, 1)[:, 0]
    lengths = grid.boxes(height, 1)[:, 2]
    assert (starts[1:] > starts[:-1]).all()
    assert (starts[:-1] + lengths[:-1] - starts[1:] >= grid.overlap).all()


@settings(deadline=None)
@given(grids(), st.integers(1, 140), SIDES, SIDES)
def test_uniform_numbers_run_by_block_then_column_then_plane(
    grid: TileGrid, planes: int, height: int, width: int
) -> None:
    boxes = grid.boxes(height, width)
    if len(boxes) * planes > 5_000:
        return
    table = grid.table([(height, width)] * planes, uniform=True)
    assert table.dtype == np.int64
    assert len(table) % 64 == 0
    real = table[table[:, 0] >= 0]
    assert (table[table[:, 0] < 0] == -1).all()
    expected = {(plane, *box) for plane in range(planes) for box in keys(boxes)}
    assert len(real) == len(expected)
    assert set(keys(real)) == expected
    # Consecutive planes of one column, inside a block, have consecutive numbers; shards are 64 of one column.
    number_of = {key: number for number, key in enumerate(keys(table))}
    for plane in range(planes - 1):
        if (plane + 1) % 64:
            for box in keys(boxes):
                assert number_of[plane + 1, *box] == number_of[plane, *box] + 1
    for shard in table.reshape(-1, 64, 5):
        assert len({tuple(row[1:]) for row in shard.tolist() if row[0] >= 0}) == 1


@settings(deadline=None)
@given(grids(), st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), st.tuples(SIDES, SIDES))
def test_adding_an_image_to_a_collection_keeps_the_numbers_there(
    grid: TileGrid, sizes: list[tuple[int, int]], added: tuple[int, int]
) -> None:
    if sum(len(grid.boxes(*size)) for size in [*sizes, added]) > 20_000:
        return
    before = grid.table(sizes, uniform=False)
    after = grid.table([*sizes, added], uniform=False)
    np.testing.assert_array_equal(after[: len(before)], before)
    assert (after[:, 0] >= 0).all()
    assert (np.diff(after[:, 0]) >= 0).all()
    assert (after[len(before) :, 0] == len(sizes)).all()


def test_a_small_table_is_as_written_down_here() -> None:
    table = TileGrid(10, 2).table([(10, 15)] * 2, uniform=True)
    assert len(table) == 128
    assert table[[0, 1, 2, 64, 65]].tolist() == [
        [0, 0, 0, 10, 10], [1, 0, 0, 10, 10], [-1] * 5, [0, 0, 5, 10, 10], [1, 0, 5, 10, 10],
    ]  # fmt: skip


def test_more_than_a_million_tiles_are_numbered_in_two_seconds() -> None:
    started = time.process_time()  # whatever else the machine does
    table = TileGrid(1024).table_uniform(19_000, 7888, 8096)
    assert len(table) >= 1_200_000
    assert time.process_time() - started < 2


def test_empty_collections_have_empty_tables() -> None:
    assert TileGrid(64).table([], uniform=False).shape == (0, 5)
    assert TileGrid(64).table([], uniform=True).shape == (0, 5)


@settings(deadline=None)
@given(grids())
def test_a_rule_comes_back_as_the_same_grid(grid: TileGrid) -> None:
    assert TileGrid.from_rule(grid.rule()) == grid


def test_tiles_are_parsed_from_text() -> None:
    assert TileGrid.parse("512", 64) == TileGrid(512, 64)
    assert TileGrid.parse(" FULL ") == TileGrid.parse(None) == TileGrid(None)
    assert TileGrid(None).rule() == {"tile": "full", "overlap": 0, "planes_per_block": 64}


@pytest.mark.parametrize(
    ("tile", "overlap", "words"),
    [("0", 0, "above 0"), ("big", 0, "number of pixels"), ("64", 64, "expected 0 to 63"),
     ("64", -1, "expected 0 to 63"), ("full", 8, "do not overlap")],
)  # fmt: skip
def test_impossible_grids_are_refused(tile: str, overlap: int, words: str) -> None:
    with pytest.raises(VolumeError, match=words):
        TileGrid.parse(tile, overlap)


def test_planes_of_different_sizes_are_not_a_uniform_volume() -> None:
    with pytest.raises(VolumeError, match="one size"):
        TileGrid(8).table([(8, 8), (9, 8)], uniform=True)
    with pytest.raises(VolumeError, match="blocks of 32"):
        TileGrid.from_rule({"tile": 8, "overlap": 0, "planes_per_block": 32})


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    np.save(tmp_path / "v.npy", np.zeros((10, 100, 120), np.uint8))
    return tmp_path


def chosen(scene: Path, **parts: str) -> list[tuple[int, ...]]:
    with open_volume(scene / "v.npy") as volume:
        table = TileGrid(40).table([(100, 120)] * 10, uniform=True)
        return keys(table[select(table, Selection(**parts), volume=volume)])


def test_without_a_selection_every_tile_is_wanted_and_no_padding(scene: Path) -> None:
    assert len(chosen(scene)) == 10 * 9


@pytest.mark.parametrize(
    ("text", "planes"),
    [("2:5", {2, 3, 4}), ("1:9:3", {1, 4, 7}), ("8:", {8, 9}), (":2", {0, 1}), ("9:10", {9})],
)
def test_z_ranges_choose_planes(scene: Path, text: str, planes: set[int]) -> None:
    assert {row[0] for row in chosen(scene, z_range=text)} == planes


@pytest.fixture(scope="module")
def one_plane(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    path = tmp_path_factory.mktemp("plane") / "v.npy"
    np.save(path, np.zeros((1, 100, 120), np.uint8))
    return open_volume(path)


@settings(deadline=None)
@given(data=st.data())
def test_a_box_chooses_exactly_the_tiles_it_touches(one_plane: Volume, data: st.DataObject) -> None:
    y0, x0 = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 119))
    y1, x1 = data.draw(st.integers(y0 + 1, 100)), data.draw(st.integers(x0 + 1, 120))
    table = TileGrid(40, 7).table([(100, 120)], uniform=True)
    box = np.zeros((100, 120), bool)
    box[y0:y1, x0:x1] = True

    wanted = select(table, Selection(bbox=f"{y0}:{y1},{x0}:{x1}"), volume=one_plane)
    for (plane, ty, tx, h, w), yes in zip(table.tolist(), wanted, strict=True):
        assert yes == (plane >= 0 and bool(box[ty : ty + h, tx : tx + w].any()))


@pytest.mark.parametrize(
    "parts",
    [{"z_range": "5:11"}, {"z_range": "10:"}, {"bbox": "0:101,0:5"}, {"bbox": "0:5,119:121"}],
)
def test_a_selection_outside_the_volume_is_refused(scene: Path, parts: dict[str, str]) -> None:
    with pytest.raises(VolumeError, match="lies outside") as error:
        chosen(scene, **parts)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "parts",
    [{"z_range": "5:6:1:1"}, {"z_range": "5,"}, {"z_range": "5:5"}, {"z_range": "0:5:0"},
     {"z_range": "-1:5"}, {"z_range": "a:b"}, {"bbox": "0:5"}, {"bbox": "5:0,0:5"}, {"bbox": "0:5,3:3"}],
)  # fmt: skip
def test_text_that_is_no_selection_is_refused_at_once(parts: dict[str, str]) -> None:
    with pytest.raises(VolumeError):
        Selection(**parts)


def test_selections_come_back_from_their_dict() -> None:
    selection = Selection("1:2", "0:5,0:6", "m.png")
    assert Selection.from_dict(selection.to_dict()) == selection


@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_a_flat_mask_chooses_the_tiles_it_touches_in_all_planes(scene: Path, factor: float) -> None:
    mask = np.zeros((int(100 * factor), int(120 * factor)), np.uint8)
    mask[int(50 * factor), int(70 * factor)] = 1
    Image.fromarray(mask).save(scene / "mask.png")
    found = chosen(scene, mask=str(scene / "mask.png"))
    assert {row[1:3] for row in found} == {(40, 40)}
    assert {row[0] for row in found} == set(range(10))


def test_a_mask_with_planes_chooses_plane_by_plane(scene: Path) -> None:
    mask = np.zeros((10, 100, 120), bool)
    mask[3, 0, 0] = mask[7, 99, 119] = True
    np.save(scene / "mask.npy", mask)
    found = chosen(scene, mask=str(scene / "mask.npy"))
    assert found == [(3, 0, 0, 40, 40), (7, 60, 80, 40, 40)]


def test_masks_that_do_not_fit_are_refused(scene: Path) -> None:
    Image.fromarray(np.ones((90, 120), np.uint8)).save(scene / "mask.png")
    with pytest.raises(VolumeError, match="90 × 120 pixels, the plane of"):
        chosen(scene, mask=str(scene / "mask.png"))
    np.save(scene / "mask.npy", np.ones((9, 100, 120), np.uint8))
    with pytest.raises(VolumeError, match="has 9 planes, the volume has 10"):
        chosen(scene, mask=str(scene / "mask.npy"))
    with pytest.raises(VolumeError, match="does not exist"):
        chosen(scene, mask=str(scene / "none.png"))


def test_masks_of_a_collection_are_matched_by_name(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, value in (("b", 1), ("a", 0)):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(np.full((20, 30), value, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    with open_volume(tmp_path / "images") as volume:
        table = TileGrid(16).table([volume.plane_size(plane) for plane in range(2)], uniform=False)
        wanted = select(table, Selection(mask=str(tmp_path / "masks")), volume=volume)
        assert {volume.plane_name(plane) for plane in table[wanted][:, 0]} == {"b.jpg"}
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "masks" / "c.png")
        (tmp_path / "masks" / "b.png").unlink()
        with pytest.raises(VolumeError, match="has no image for b"):
            select(table, Selection(mask=str(tmp_path / "masks")), volume=volume)
