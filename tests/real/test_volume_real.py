"""Volumes over the shared real images; skipped, with the reason, where they are absent."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from embedcache.geometry import Tile
from embedcache.volume import Selection, TileGrid, open_volume, resolve_preprocess, select, volume_identity

pytestmark = pytest.mark.real


def test_infrared_photographs_open_at_once_as_colour_images_of_their_own_sizes(real_data: Path) -> None:
    started = time.process_time()
    volume = open_volume(real_data / "qumran_ir_ink" / "images")
    assert time.process_time() - started < 1
    assert (volume.kind, volume.uniform, volume.channels, volume.n_planes) == ("images", False, 3, 10)
    assert len({volume.plane_size(plane) for plane in range(10)}) > 5
    names = [volume.plane_name(plane) for plane in range(10)]
    plane = names.index("124_006.jpg")
    expected = np.asarray(Image.open(real_data / "qumran_ir_ink" / "images" / "124_006.jpg"))
    np.testing.assert_array_equal(
        volume.read(plane, slice(100, 900), slice(50, 700)), expected[100:900, 50:700]
    )


def test_parchment_masks_leave_tiles_of_the_ground_out(real_data: Path) -> None:
    folder = real_data / "qumran_ir_ink"
    with open_volume(folder / "images") as volume:
        sizes = [volume.plane_size(plane) for plane in range(volume.n_planes)]
        table = TileGrid(512).table(sizes, uniform=False)
        wanted = select(table, Selection(mask=str(folder / "parchment_masks")), volume=volume)
    assert 0 < wanted.sum() < len(table)
    with open_volume(folder / "parchment_masks") as masks:
        for number in np.flatnonzero(~wanted)[:20]:
            tile = Tile(*map(int, table[number]))
            assert not masks.read(tile.plane, *tile.slices).any()


def test_electron_microscope_sections_are_a_stack_of_the_encoders_own_size(real_data: Path) -> None:
    folder = real_data / "drosophila_vnc" / "stack1" / "raw"
    volume = open_volume(folder)
    assert (volume.kind, volume.uniform, volume.n_planes) == ("tiff", True, 20)
    assert volume.plane_size(0) == (1024, 1024)
    for plane, path in ((0, "00.tif"), (19, "19.tif")):
        np.testing.assert_array_equal(
            volume.read(plane, slice(None), slice(None)), tifffile.imread(folder / path)
        )
    found = resolve_preprocess(volume).to_input(volume.read(7, slice(None), slice(None)))
    assert found.shape == (3, 1024, 1024)
    assert (found[0] * 58.395 + 123.675).round().astype(np.uint8).tolist() == tifffile.imread(
        folder / "07.tif"
    ).tolist()


def test_one_stack_is_prepared_alike_from_every_format(real_data: Path, tmp_path: Path) -> None:
    source = open_volume(real_data / "isbi" / "image")
    stack = np.stack([source.read(plane, slice(None), slice(None)) for plane in range(8)])
    zarr.create_array(str(tmp_path / "a.zarr"), shape=stack.shape, chunks=(4, 128, 128), dtype="uint8")[
        ...
    ] = stack
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression="zlib")
    np.save(tmp_path / "a.npy", stack)
    digests = set()
    for name in ("a.zarr", "a.tif", "a.npy"):
        with open_volume(tmp_path / name) as volume:
            preprocess = resolve_preprocess(volume, channels="adjacent")
            digests.add(volume_identity(volume, TileGrid(256), preprocess)["pixels"])
    assert len(digests) == 1


def test_masks_of_one_bit_and_of_grey_levels_keep_their_values(real_data: Path) -> None:
    stack = real_data / "drosophila_vnc" / "stack1"
    binary = open_volume(stack / "membranes")
    assert set(np.unique(binary.read(0, slice(None), slice(None)))) == {0, 255}
    labels = sorted((stack / "labels").glob("*.png"))[0]
    values = open_volume(labels).read(0, slice(None), slice(None))
    np.testing.assert_array_equal(values, np.asarray(Image.open(labels)))
