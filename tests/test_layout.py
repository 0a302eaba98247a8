"""The layout: names, metadata that Zarr reads, and the checked tile table."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import CorruptionError, InputError, StorageError
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


def test_metadata_that_may_not_be_read_or_is_a_link_is_no_reason_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.write_arrays(tmp_path, 7, 2, "int8")
    real = os.open

    def refuse(path: object, *rest: object, **options: object) -> int:
        if path == "zarr.json":
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for act in (
            lambda: layout.write_arrays(tmp_path, 7, 2, "int8"),
            lambda: layout.read_json(tmp_path / "scales" / "zarr.json"),
        ):
            with pytest.raises(StorageError, match="Cannot read"):
                act()
    assert zarr.open_array(tmp_path / "scales", mode="r").shape == (7, 256)


def test_metadata_and_tables_of_other_sizes_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "zarr.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptionError, match="at most"):
        layout.read_json(tmp_path / "zarr.json")
    layout.write_tiles(tmp_path, numbered(3))
    assert layout.has_rows(tmp_path, 4096)
    assert not layout.has_rows(tmp_path, 4097)
    with layout.tiles_path(tmp_path, 0).open("r+b") as stream:
        stream.truncate(100)
    assert not layout.has_rows(tmp_path, 1)
    with pytest.raises(CorruptionError, match="tile table"):
        layout.read_tiles(tmp_path, 3)


def test_a_table_that_may_not_be_read_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.write_tiles(tmp_path, numbered(3))

    def refuse(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(layout, "read_inside", refuse)
    with pytest.raises(StorageError, match="Cannot read"):
        layout.read_tiles(tmp_path, 3)
