"""Frames are mapped there and back, and SAM's own size rule holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import InputError
from embedcache.geometry import VIEW_SETS, Tile, scaled_size, see, see_boxes, see_points, unsee

sizes = st.integers(16, 4096)
small = st.integers(1, 9)
views = st.integers(0, 7)


@given(height=sizes, width=sizes, x=st.floats(0, 1), y=st.floats(0, 1))
def test_points_go_to_the_frame_and_back(height, width, x, y):
    tile = Tile(0, 0, 0, height, width)
    point = np.array([x * width, y * height])
    assert np.abs(tile.from_frame(tile.to_frame(point)) - point).max() <= 1e-3


@given(height=sizes, width=sizes)
def test_the_content_fills_the_frame_by_its_longer_side(height, width):
    tile = Tile(0, 0, 0, height, width)
    assert max(tile.input_size) == 1024
    assert max(tile.low_res_size) == 256
    assert min(tile.low_res_size) >= 1


@given(height=sizes, width=sizes)
def test_the_corners_of_a_tile_are_the_corners_of_its_content(height, width):
    tile = Tile(3, 5, 7, height, width)
    content_height, content_width = tile.input_size
    box = tile.boxes_to_frame([0, 0, width, height])
    assert box == pytest.approx([0, 0, content_width, content_height], abs=1e-3)


def test_x_stays_x_and_y_stays_y():
    tile = Tile(0, 0, 0, 256, 512)
    assert tile.to_frame([100, 10]).tolist() == [200, 20]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (1024, 1024)),
        ((300, 512), (600, 1024)),
        ((683, 1024), (683, 1024)),
        ((1365, 2048), (683, 1024)),
    ],
)
def test_sizes_follow_sams_rule(size, expected):
    # the values of ResizeLongestSide(1024).get_preprocess_shape
    assert scaled_size(*size, 1024) == expected


@given(height=small, width=small, view=views)
def test_a_view_is_undone_moves_the_pixels_it_says_and_copies_nothing(height, width, view):
    array = np.arange(2 * height * width).reshape(2, height, width)
    seen = see(array, view)
    assert np.array_equal(unsee(seen, view), array)
    assert np.shares_memory(seen, array)
    y, x = np.mgrid[:height, :width]
    moved = see_points(np.stack([x, y], axis=-1), (height, width), view).astype(int)
    assert np.array_equal(seen[:, moved[..., 1], moved[..., 0]], array)


@given(height=small, width=small, view=views, data=st.data())
def test_a_box_holds_the_same_pixels_after_a_view(height, width, view, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    array = np.zeros((height, width), bool)
    array[y0:y1, x0:x1] = True
    left, top, right, bottom = see_boxes([x0, y0, x1, y1], (height, width), view).astype(int)
    seen = see(array, view)
    assert seen[top:bottom, left:right].all()
    assert seen.sum() == (bottom - top) * (right - left)


@given(first=views, second=views)
def test_two_views_after_one_another_are_a_third(first, second):
    array = np.arange(6).reshape(2, 3)
    twice = see(see(array, first), second)
    assert sum(np.array_equal(twice, see(array, view)) for view in range(8)) == 1


def test_view_one_is_a_quarter_turn_counter_clockwise_and_view_four_a_mirror():
    array = np.arange(6).reshape(2, 3)
    assert see(array, 1).tolist() == [[2, 5], [1, 4], [0, 3]]
    assert see(array, 4).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert np.array_equal(see(array, 5), np.rot90(array[:, ::-1]))
    assert {name: len(found) for name, found in VIEW_SETS.items()} == {"none": 1, "flips": 4, "d4": 8}
    assert all(see(array, view).shape == array.shape for view in VIEW_SETS["flips"])
    with pytest.raises(InputError, match="no view 8"):
        see(array, 8)


@given(height=sizes, width=sizes, view=views)
def test_the_frames_of_a_tile_with_a_view_are_those_of_the_tile_as_seen(height, width, view):
    tile = Tile(3, 5, 7, height, width, view)
    seen = Tile(3, 5, 7, width, height) if view % 2 else Tile(3, 5, 7, height, width)
    assert tile.seen == seen
    assert (tile.input_size, tile.low_res_size, tile.scale) == (
        seen.input_size,
        seen.low_res_size,
        seen.scale,
    )
    assert tile.to_frame([5, 9]).tolist() == seen.to_frame([5, 9]).tolist()
    assert tile.from_frame([5, 9]).tolist() == seen.from_frame([5, 9]).tolist()
    assert tile.boxes_to_frame([1, 2, 5, 9]).tolist() == seen.boxes_to_frame([1, 2, 5, 9]).tolist()
    assert tile.slices == (slice(5, 5 + height), slice(7, 7 + width))
