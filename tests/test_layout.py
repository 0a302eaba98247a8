"""The layout: names, metadata that Zarr reads, and the checked tile table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import CorruptionError, InputError
from embedcache.files import write_file
from embedcache.store import layout


def numbered(n: int) -> np.ndarray:
    return np.arange(n * 5, dtype=np.int64).reshape(n, 5)


@given(n=st.integers(0, 9000), more=st.integers(0, 5000))
@settings(max_examples=10, deadline=None)
def test_a_tile_table_reads_back_and_grows(
    tmp_path_factory: pytest.TempPathFactory, n: int, more: int
) -> None:
    root = tmp_path_factory.mktemp("tiles")
    whole = numbered(n + more)
    layout.write_tiles(root, whole[:n])
    layout.write_tiles(root, whole, first=n)
    assert np.array_equal(layout.read_tiles(root, n), whole[:n])
    assert np.array_equal(layout.read_tiles(root, n + more), whole)


def test_zarr_reads_the_tile_table(tmp_path: Path) -> None:
    layout.write_tiles(tmp_path, numbered(5000))
    layout.write_arrays(tmp_path, 5000, 4, "float16")
    assert np.array_equal(zarr.open_array(tmp_path / "tiles", mode="r")[:], numbered(5000))


def test_a_flipped_bit_in_the_tile_table_is_found(tmp_path: Path) -> None:
    layout.write_tiles(tmp_path, numbered(3))
    path = layout.tiles_path(tmp_path, 0)
    data = bytearray(path.read_bytes())
    data[17] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="tile table"):
        layout.read_tiles(tmp_path, 3)


def test_a_missing_part_of_the_tile_table_is_found(tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="missing"):
        layout.read_tiles(tmp_path, 3)


def test_metadata_of_arrays_that_is_right_is_left_alone_and_any_other_is_mended(tmp_path: Path) -> None:
    layout.write_arrays(tmp_path, 7, 2, "float16")
    before = [(tmp_path / name / "zarr.json").stat().st_ino for name in ("tiles", "image_embeddings")]
    layout.write_arrays(tmp_path, 7, 2, "float16")
    after = [(tmp_path / name / "zarr.json").stat().st_ino for name in ("tiles", "image_embeddings")]
    assert before == after
    for text in ("", "{", "[1]", '{"shape": [9, 5]}'):
        (tmp_path / "tiles" / "zarr.json").write_text(text)
        layout.write_arrays(tmp_path, 7, 2, "float16")
        assert zarr.open_array(tmp_path / "tiles", mode="r").shape == (7, 5)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\x00", '{"a": NaN'])
def test_metadata_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    write_file(tmp_path / "zarr.json", text.encode())
    with pytest.raises(InputError):
        layout.read_json(tmp_path / "zarr.json")
