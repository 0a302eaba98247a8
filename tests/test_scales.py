"""The file of scales: a chunk of a Zarr array, and every row of it proven by itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from embedcache.errors import CorruptionError, StorageError
from embedcache.files import crc32c
from embedcache.store import layout
from embedcache.store.shards.scales import CHANNELS, read_scales, row_crc, scales_bytes

SHARD_TILES = 3


def row(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(CHANNELS, np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Scales of slots 0 and 2 of shard 1."""
    path = layout.scales_path(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(scales_bytes({2: row(2), 0: row(0)}, SHARD_TILES))
    return path


def test_rows_come_back_and_what_has_none_is_nan(tmp_path: Path, path: Path) -> None:
    scales = read_scales(tmp_path, 1, SHARD_TILES)
    assert scales.intact
    for slot in (0, 2):
        assert np.array_equal(scales.rows[slot], row(slot))
        assert scales.crc(slot) == row_crc(row(slot)) == crc32c(row(slot).tobytes())
    assert np.isnan(scales.rows[1]).all()


def test_zarr_reads_the_file(tmp_path: Path, path: Path) -> None:
    (tmp_path / layout.SCALES / "zarr.json").write_bytes(
        layout.json_bytes(layout.scales_metadata(5, SHARD_TILES))
    )
    array = zarr.open_array(tmp_path / layout.SCALES, mode="r")
    assert np.array_equal(array[3], row(0))
    assert np.isnan(array[:3]).all()  # shard 0 has no file
    assert np.isnan(array[4]).all()


def test_a_flipped_bit_spoils_its_row_and_no_other(tmp_path: Path, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2 * CHANNELS * 4 + 17] ^= 4
    path.write_bytes(data)
    scales = read_scales(tmp_path, 1, SHARD_TILES)
    assert not scales.intact
    assert scales.crc(0) == row_crc(row(0))
    assert scales.crc(2) != row_crc(row(2))


@pytest.mark.parametrize("harm", ["missing", "no folder", "cut", "longer", "link", "folder", "pipe"])
def test_anything_but_a_file_of_the_right_size_is_corruption(tmp_path: Path, path: Path, harm: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if harm == "no folder":
        path.parent.rmdir()
        path.parent.write_bytes(b"")
    elif harm in ("cut", "longer"):
        path.write_bytes(data[:-1] if harm == "cut" else data + b"\0")
    elif harm == "link":
        (tmp_path / "aside").write_bytes(data)
        path.symlink_to(tmp_path / "aside")
    elif harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    with pytest.raises(CorruptionError):
        read_scales(tmp_path, 1, SHARD_TILES)


def test_a_refusal_of_the_system_is_not_called_corruption(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        read_scales(tmp_path, 1, SHARD_TILES)
