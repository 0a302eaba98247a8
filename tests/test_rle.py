"""Run lengths: 1-based, row by row; what they cannot mean is refused with its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedcache.errors import InputError
from embedcache.results import rle
from embedcache.results.rle import RunWriter, decode_runs, encode_runs

MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def test_runs_count_from_one_row_by_row_and_go_on_into_the_next_row() -> None:
    mask = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], bool)
    assert encode_runs(mask) == "2 2 8 2"


@given(MASKS)
def test_a_mask_comes_back_from_its_runs(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_runs(encode_runs(mask), mask.shape), mask)


@given(MASKS, st.data())
def test_blocks_of_rows_give_the_runs_of_the_whole(mask: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(mask)), max_size=4)))
    writer = RunWriter()
    for first, last in zip([0, *cuts], [*cuts, len(mask)], strict=True):
        writer.add(mask[first:last])
    assert writer.text() == encode_runs(mask)
    assert writer.pixels == mask.size


@given(MASKS, st.integers(1, 7))
def test_runs_that_go_on_from_block_to_block_stay_one(mask: np.ndarray, block: int) -> None:
    whole = encode_runs(mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle, "BLOCK_PIXELS", block)
        assert encode_runs(mask) == whole


@given(MASKS)
def test_runs_are_those_that_the_contests_own_code_finds(mask: np.ndarray) -> None:
    pixels = np.concatenate([[0], mask.ravel().astype(np.uint8), [0]])  # the well-known lines of the contests
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    assert encode_runs(mask) == " ".join(map(str, runs))


def test_an_empty_mask_is_an_empty_cell_and_a_full_one_a_single_run() -> None:
    assert encode_runs(np.zeros((3, 4), bool)) == ""
    assert encode_runs(np.ones((3, 4), bool)) == "1 12"
    assert not decode_runs("", (3, 4)).any()
    assert decode_runs(" 1  12 ", (3, 4)).all()


def test_runs_that_touch_each_other_are_painted() -> None:
    np.testing.assert_array_equal(decode_runs("1 2 3 1", (1, 4)), [[True, True, True, False]])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("1 2 3", "3 numbers"),
        ("0 2", r"run 1 \(start 0, length 2\)"),
        ("1 2 5 0", r"run 2 \(start 5, length 0\)"),
        ("1 3 3 1", r"run 2 .*begins before"),
        ("5 1 1 1", r"run 2 .*begins before"),
        ("7 1 11 3", r"run 2 \(start 11, length 3\) ends beyond 3 × 4 pixels"),
        ("-1 2", "'-1'"),
        ("1.0 2", r"'1\.0'"),
        ("1 2;3 4", "'2;3'"),
        ("1 1e9", "'1e9'"),
        ("1 " + "9" * 30, "beyond any plane"),
        ("\u0661 2", "no number"),
        ("1 99999999999", "ends beyond"),
        ("1 2\n5 1", "no number"),
        ("1 2\u00a05 1", "no number"),
    ],
)
def test_what_is_no_mask_of_the_plane_is_refused_with_its_place(cell: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        decode_runs(cell, (3, 4), where="sub.csv, Id a")
    assert refused.value.message.startswith("sub.csv, Id a: ")


@pytest.mark.parametrize("shape", [(0, 4), (3, -1), (1 << 20, 1 << 20)])
def test_a_size_that_cannot_be_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="cannot be painted"):
        decode_runs("", shape)
