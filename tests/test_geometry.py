"""Frames are mapped there and back, and SAM's own size rule holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.geometry import Tile, scaled_size

sizes = st.integers(16, 4096)


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
