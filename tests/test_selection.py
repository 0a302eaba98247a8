"""Which planes ``--z-range`` takes, and which tiles a mask touches at whatever size it was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import VolumeError
from embedcache.volume import Selection, TileGrid, open_volume, select
from embedcache.volume.mask import open_mask

PLANES = 210


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    path = tmp_path_factory.mktemp("selection") / "v.npy"
    np.save(path, np.zeros((PLANES, 4, 4), np.uint8))
    return open_volume(path)


def planes_of(text: str, volume) -> list[int]:
    table = TileGrid(4).table_uniform(PLANES, 4, 4)
    return np.unique(table[select(table, Selection(z_range=text), volume=volume), 0]).tolist()


@pytest.mark.parametrize(
    ("text", "planes"),
    [
        ("0:65:8,100,200:210", [*range(0, 65, 8), 100, *range(200, 210)]),
        ("5", [5]),
        ("209", [209]),
        (" 3 : 5 , 4:6 ", [3, 4, 5]),
        (":2,208:", [0, 1, 208, 209]),
        ("::50", [0, 50, 100, 150, 200]),
        ("9,3,9", [3, 9]),
    ],
)
def test_ranges_and_single_planes_are_added_up(text, planes, volume):
    assert planes_of(text, volume) == planes


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 10), st.integers(1, 4)), min_size=1, max_size=5)
)
def test_any_list_of_ranges_is_the_union_of_them(volume, ranges):
    text = ",".join(f"{first}:{first + length}:{step}" for first, length, step in ranges)
    assert planes_of(text, volume) == sorted(
        {plane for first, length, step in ranges for plane in range(first, first + length, step)}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1:2,,3:4", "--z-range 1:2,,3:4: expected FIRST:END"),
        ("1:2,x", "expected FIRST:END"),
        ("1-5", "expected FIRST:END"),
        ("3,5:5", "--z-range 5:5 holds no plane"),
        ("1:9:0", "--z-range 1:9:0 holds no plane"),
        ("²", "expected FIRST:END"),
    ],
)
def test_what_is_no_list_of_planes_is_refused_with_its_place(text, said):
    with pytest.raises(VolumeError, match=said):
        Selection(z_range=text)


@pytest.mark.parametrize("text", ["0:5,210", "0:211", "500", "0:5,210:"])
def test_planes_that_are_not_there_are_refused(text, volume):
    with pytest.raises(VolumeError, match=r"lies outside .* which has planes 0 to 209"):
        planes_of(text, volume)


def test_a_selection_survives_a_file():
    for text in ("0:65:8,100", "random:4:7"):
        assert Selection.from_dict(Selection(z_range=text).to_dict()) == Selection(z_range=text)


def test_a_mask_of_half_the_size_is_read_at_the_volumes_pixels(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((2, 81, 60), np.uint8))
    small = np.random.default_rng(0).random((41, 30)) > 0.6
    np.save(tmp_path / "m.npy", small.astype(np.uint8))
    inside = np.kron(small, np.ones((2, 2), bool))[:81, :60]
    with open_volume(tmp_path / "v.npy") as volume, open_mask(str(tmp_path / "m.npy"), volume) as mask:
        for y0, y1, x0, x1 in ((0, 81, 0, 60), (7, 20, 31, 33), (80, 81, 0, 5)):
            inside_box = inside[y0:y1, x0:x1]
            np.testing.assert_array_equal(mask.read(1, slice(y0, y1), slice(x0, x1)), inside_box)
            assert mask.touches(1, y0, x0, y1 - y0, x1 - x0) == inside_box.any()
