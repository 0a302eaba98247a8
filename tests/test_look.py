"""A glance at a volume: intensities are counted and pictures made of what little may be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from layout_samples import VALUES, write_ome, write_sparse
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.volume import open_volume
from embedcache.volume.look import histogram, thumbnail
from embedcache.volume.window import sample_pixels

MIB = 1 << 20


def test_a_histogram_costs_no_more_than_its_limit_and_counts_what_the_window_saw(tmp_path: Path) -> None:
    with open_volume(write_sparse(tmp_path / "v.zarr", (512, 2048, 2048))) as volume:
        histogram(volume, limit=8 * MIB)
        assert volume.reads.bytes == 8 * MIB
    np.save(tmp_path / "v.npy", VALUES)
    with open_volume(tmp_path / "v.npy") as volume:
        counted = histogram(volume)
        expected, edges = np.histogram(sample_pixels(volume), 32)
    assert (counted["counts"], counted["edges"]) == (expected.tolist(), edges.tolist())
    assert counted["sampled_pixels"] == expected.sum() == 64 * 30 * 40


def test_zeros_and_what_is_no_number_are_counted_apart(tmp_path: Path) -> None:
    values = np.ones((1, 10, 10), np.float32)
    values[0, 0, :4] = np.nan, np.inf, 0, 0
    np.save(tmp_path / "v.npy", values)
    counted = histogram(open_volume(tmp_path / "v.npy"))
    assert (counted["nan"], counted["zeros"], sum(counted["counts"])) == (64 * 2, 64 * 2, 64 * 98)
    np.save(tmp_path / "n.npy", np.full((1, 10, 10), np.nan, np.float32))
    assert sum(histogram(open_volume(tmp_path / "n.npy"))["counts"]) == 0


def test_a_folder_of_large_images_decodes_only_as_many_as_the_limit_allows(tmp_path: Path) -> None:
    for number in range(8):
        Image.fromarray(np.full((256, 256), number, np.uint8)).save(tmp_path / f"{number}.png")
    with open_volume(tmp_path) as volume:
        histogram(volume, limit=3 * 256 * 256)
        assert volume.reads.chunks == 3


def test_a_picture_of_a_small_plane_is_its_average(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VALUES)
    with open_volume(tmp_path / "v.npy") as volume:
        whole = thumbnail(volume, (0, 255), plane=2)
        np.testing.assert_array_equal(whole.pixels, VALUES[2])
        half = thumbnail(volume, (0, 255), plane=2, side=20).pixels
    expected = VALUES[2].reshape(15, 2, 20, 2).mean((1, 3))
    assert np.abs(half - expected).max() <= 1  # rounded along each side
    assert (whole.plane, whole.level, whole.pieces) == (2, 0, (1, 1))


def test_a_picture_is_made_of_the_coarsest_level_that_is_large_enough(tmp_path: Path) -> None:
    values = np.repeat(np.repeat(VALUES, 4, axis=1), 4, axis=2)
    path = write_ome(tmp_path / "v.zarr", values, levels=3)
    with open_volume(path) as volume:
        small = thumbnail(
            volume, (0, 255), plane=5, side=64, at_level=lambda level: open_volume(path, level=level)
        )
        np.testing.assert_array_equal(volume.reads.bytes, 0)
    assert (small.plane, small.level) == (5, 1)
    expected = Image.fromarray(values[::2, ::2, ::2][2]).resize((64, 48), Image.Resampling.BOX)
    np.testing.assert_array_equal(small.pixels, np.asarray(expected))


@pytest.mark.parametrize("kind", ["zarr", "npy", "colour"])
def test_a_picture_of_a_large_plane_is_of_parts_and_costs_no_more_than_its_limit(
    tmp_path: Path, kind: str
) -> None:
    ramp = np.linspace(0, 255, 1200).astype(np.uint8)
    plane = np.tile(ramp[:, np.newaxis], (1, 900))
    if kind == "zarr":
        array = zarr.create_array(
            tmp_path / "v.zarr", shape=(1, 1200, 900), chunks=(1, 64, 64), dtype="uint8"
        )
        array[0] = plane
        path = tmp_path / "v.zarr"
    else:
        path = tmp_path / "v.npy"
        np.save(
            path, plane[np.newaxis] if kind == "npy" else np.repeat(plane[np.newaxis, ..., np.newaxis], 3, 3)
        )
    with open_volume(path) as volume:
        small = thumbnail(volume, (0, 255), side=100, limit=200_000)
        assert 0 < volume.reads.bytes <= 200_000
    assert small.pieces != (1, 1)
    assert small.pixels.shape[:2] == (100, 75)
    found = small.pixels.reshape(100, -1).mean(axis=1)
    assert np.abs(found - np.linspace(0, 255, 100)).max() < 20


def test_a_picture_maps_the_window_and_shows_no_number_as_dark(tmp_path: Path) -> None:
    values = np.array([[[100, 150, 200, 300, np.nan]]], np.float32)
    np.save(tmp_path / "v.npy", values)
    with open_volume(tmp_path / "v.npy") as volume:
        assert thumbnail(volume, (100, 200)).pixels.tolist() == [[0, 127, 255, 255, 0]]
        with pytest.raises(VolumeError, match="planes 0 to 0; there is no plane 1"):
            thumbnail(volume, (0, 1), plane=1)
