from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from embedcache.errors import VolumeError
from embedcache.volume import open_volume
from embedcache.volume.pyramid import read_pyramid
from embedcache.volume.tree import LocalTree

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2 with dots": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2 with slashes": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 without compressor": {"zarr_format": 2, "compressors": None},
    "v2 big-endian": {"zarr_format": 2, "dtype": ">u2"},
    "v3": {"zarr_format": 3},
    "v3 sharded": {"zarr_format": 3, "shards": (16, 32, 64)},
}


def pixels(shape: tuple[int, ...] = (20, 50, 70), dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def write_array(path: Path, values: np.ndarray, **options: Any) -> Path:
    options = {"dtype": values.dtype, "chunks": (8, 16, 32), "zarr_format": 2, **options}
    zarr.create_array(str(path), shape=values.shape, **options)[...] = values
    return path


def write_pyramid(path: Path, values: np.ndarray, *, zarr_format: int = 2, metadata: bool = True) -> Path:
    zarr.create_group(str(path), zarr_format=zarr_format)
    for level in range(3):
        write_array(path / str(level), values[:: 2**level, :: 2**level, :: 2**level], zarr_format=zarr_format)
    if metadata:
        datasets = [{"path": str(level)} for level in range(3)]
        multiscales = [{"axes": [{"name": name} for name in "zyx"], "datasets": datasets}]
        group = zarr.open_group(str(path), mode="r+")
        attributes: dict[str, Any] = {"multiscales": multiscales}
        group.attrs.update(attributes if zarr_format == 2 else {"ome": attributes})
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_the_pixels_that_were_written(tmp_path: Path, layout: str) -> None:
    values = pixels()
    volume = open_volume(write_array(tmp_path / "a.zarr", values, **LAYOUTS[layout]))
    assert (volume.kind, volume.uniform, volume.channels, volume.level) == ("zarr", True, 1, 0)
    assert (volume.n_planes, *volume.plane_size(0), volume.dtype) == (20, 50, 70, np.dtype("uint16"))
    assert volume.chunks == (8, 16, 32)
    for plane in (0, 7, 8, 19):
        crop = volume.read(plane, slice(3, 49), slice(30, 70))
        assert crop.dtype.isnative
        np.testing.assert_array_equal(crop, values[plane, 3:49, 30:70])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("metadata", [True, False])
def test_levels_come_from_the_metadata_or_from_probing(
    tmp_path: Path, zarr_format: int, metadata: bool
) -> None:
    values = pixels()
    path = write_pyramid(tmp_path / "p.zarr", values, zarr_format=zarr_format, metadata=metadata)
    for level in range(3):
        volume = open_volume(path, level=level)
        assert volume.level == level
        step = 2**level
        np.testing.assert_array_equal(
            volume.read(1, slice(0, 9), slice(2, 12)), values[::step, ::step, ::step][1, 0:9, 2:12]
        )


def test_a_level_named_by_its_path_is_the_same_volume_as_by_its_number(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "p.zarr", pixels())
    by_number, by_path = open_volume(path, level=2), open_volume(path / "2")
    assert by_number.header() == by_path.header()
    assert open_volume(path / "2", level=2).level == 2
    with pytest.raises(VolumeError, match="single array, level 2 of its group; it has no level 1"):
        open_volume(path / "2", level=1)


def test_a_missing_level_is_refused_and_the_levels_there_are_named(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "p.zarr", pixels())
    with pytest.raises(VolumeError, match="no level 7; levels that are there: 0, 1, 2") as error:
        open_volume(path, level=7)
    assert error.value.exit_code == 2
    with pytest.raises(VolumeError, match="count from 0"):
        open_volume(path, level=-1)


def test_a_level_that_was_not_copied_is_named(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "p.zarr", pixels())
    (path / "1" / ".zarray").unlink()
    with pytest.raises(VolumeError, match="names level 1 as '1', but no array is there"):
        open_volume(path, level=1)


def test_numbered_arrays_in_a_folder_without_any_metadata_are_a_pyramid(tmp_path: Path) -> None:
    values = pixels()
    write_array(tmp_path / "plain" / "0", values)
    volume = open_volume(tmp_path / "plain")
    np.testing.assert_array_equal(volume.read(2, slice(None), slice(None)), values[2])


@pytest.mark.parametrize("leading", [1, 2])
def test_leading_axes_of_length_one_are_dropped(tmp_path: Path, leading: int) -> None:
    values = pixels()
    array = values[(np.newaxis,) * leading]
    volume = open_volume(write_array(tmp_path / "a.zarr", array, chunks=(1,) * leading + (8, 16, 32)))
    assert (volume.n_planes, *volume.plane_size(0)) == values.shape
    assert volume.chunks == (8, 16, 32)
    np.testing.assert_array_equal(volume.read(19, slice(1, 4), slice(60, 70)), values[19, 1:4, 60:70])


def test_two_dimensions_are_one_plane_and_a_trailing_three_is_colour(tmp_path: Path) -> None:
    flat, colour = pixels((50, 70)), pixels((5, 50, 70, 3), "uint8")
    one = open_volume(write_array(tmp_path / "flat.zarr", flat, chunks=(16, 16)))
    assert one.n_planes == 1
    np.testing.assert_array_equal(one.read(0, slice(None), slice(None)), flat)
    rgb = open_volume(write_array(tmp_path / "rgb.zarr", colour, chunks=(2, 16, 16, 3)))
    assert (rgb.n_planes, rgb.channels, rgb.plane_size(0)) == (5, 3, (50, 70))
    np.testing.assert_array_equal(rgb.read(4, slice(2, 9), slice(5, 40)), colour[4, 2:9, 5:40])


def test_named_axes_decide_where_colour_lies(tmp_path: Path) -> None:
    values = pixels((1, 3, 4, 20, 30), "uint8")
    path = tmp_path / "tczyx.zarr"
    group = zarr.create_group(str(path), zarr_format=2)
    write_array(path / "0", values, chunks=(1, 1, 2, 20, 30))
    axes = [{"name": name} for name in "tczyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    volume = open_volume(path)
    assert (volume.n_planes, volume.channels) == (4, 3)
    crop = volume.read(2, slice(4, 9), slice(0, 30))
    np.testing.assert_array_equal(crop, np.moveaxis(values[0, :, 2, 4:9], 0, -1))


def test_two_channels_are_not_silently_taken_for_planes(tmp_path: Path) -> None:
    path = write_array(tmp_path / "c.zarr", pixels((2, 5, 20, 30)), chunks=(1, 5, 20, 30))
    with pytest.raises(VolumeError, match=r"shape \(2, 5, 20, 30\) is not a volume; expected \(Z, Y, X\)"):
        open_volume(path)


def test_a_group_without_levels_is_refused(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "g.zarr"), zarr_format=2)
    with pytest.raises(VolumeError, match="without an array named 0"):
        open_volume(tmp_path / "g.zarr")


def test_booleans_are_read_as_0_and_255_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    mask = pixels() > 100
    volume = open_volume(write_array(tmp_path / "mask.zarr", mask))
    np.testing.assert_array_equal(volume.read(3, slice(None), slice(None)), mask[3] * np.uint8(255))
    with pytest.raises(VolumeError, match="complex64; expected integers"):
        open_volume(write_array(tmp_path / "complex.zarr", pixels(dtype="complex64")))


def test_opening_and_reading_a_tile_of_a_huge_volume_touches_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "huge.zarr"
    group = zarr.create_group(str(path), zarr_format=2)
    array = zarr.create_array(
        str(path / "0"), shape=(75784, 32693, 32693), chunks=(128, 128, 128), dtype="uint8", zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": "/"}, compressors=None,
    )  # fmt: skip
    group.attrs["multiscales"] = [{"datasets": [{"path": "0"}]}]
    array[1280:1408, 256:512, 384:512] = 7
    # Every other chunk that exists is damaged: whoever reads one of them fails.
    for place in ("9/2/3", "11/2/3", "10/1/3", "10/4/3", "10/2/2", "10/2/4"):
        chunk = path / "0" / place
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(b"damaged")
    started = time.process_time()
    with open_volume(path) as volume:
        assert time.process_time() - started < 5  # it has 38 million chunks: to look at each takes minutes
        assert (volume.read(1300, slice(256, 512), slice(384, 512)) == 7).all()
        assert (volume.read(1407, slice(256, 512), slice(384, 512)) == 7).all()
        with pytest.raises(VolumeError, match=r"planes 1408:1536, rows 256:384, columns 384:512 cannot be"):
            volume.read(1408, slice(256, 512), slice(384, 512))


def test_chunks_that_are_not_there_read_as_the_fill_value(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a"), shape=(8, 32, 32), chunks=(8, 16, 16), dtype="uint8", fill_value=9)
    volume = open_volume(tmp_path / "a")
    assert (volume.read(0, slice(0, 32), slice(0, 32)) == 9).all()


def test_groups_are_never_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = pixels()
    path = write_pyramid(tmp_path / "p.zarr", values, metadata=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a folder was listed")

    for owner, name in ((os, "listdir"), (os, "scandir"), (Path, "iterdir"), (Path, "glob")):
        monkeypatch.setattr(owner, name, refuse)
    volume = open_volume(path, level=1)
    crop = volume.read(3, slice(0, 5), slice(0, 5))
    monkeypatch.undo()
    np.testing.assert_array_equal(crop, values[::2, ::2, ::2][3, :5, :5])


def test_each_slab_is_decoded_once_for_all_its_planes_and_threads(tmp_path: Path) -> None:
    values = pixels()
    path = write_array(tmp_path / "a.zarr", values)
    volume = open_volume(path)
    first = volume.read(8, slice(0, 16), slice(0, 32))
    for chunk in path.glob("1.0.0*"):
        chunk.unlink()  # from here on, only the cached slab knows these pixels
    np.testing.assert_array_equal(volume.read(15, slice(2, 10), slice(3, 31)), values[15, 2:10, 3:31])
    np.testing.assert_array_equal(first, values[8, :16, :32])

    failures: list[int] = []

    def work(plane: int) -> None:
        if not np.array_equal(volume.read(plane, slice(16, 50), slice(0, 70)), values[plane, 16:50]):
            failures.append(plane)

    threads = [threading.Thread(target=work, args=(plane,)) for plane in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_reading_does_not_hand_out_the_cache(tmp_path: Path) -> None:
    values = pixels()
    volume = open_volume(write_array(tmp_path / "a.zarr", values))
    volume.read(0, slice(0, 5), slice(0, 5))[...] = 0
    np.testing.assert_array_equal(volume.read(0, slice(0, 5), slice(0, 5)), values[0, :5, :5])


@pytest.mark.parametrize(
    ("plane", "rows", "columns"),
    [
        (20, slice(0, 5), slice(0, 5)),
        (0, slice(0, 51), slice(0, 5)),
        (0, slice(5, 5), slice(0, 5)),
        (0, slice(0, 5), slice(-3, 5)),
        (0, slice(0, 5, 2), slice(0, 5)),
    ],
)
def test_crops_outside_a_plane_are_refused(tmp_path: Path, plane: int, rows: slice, columns: slice) -> None:
    volume = open_volume(write_array(tmp_path / "a.zarr", pixels()))
    with pytest.raises(VolumeError):
        volume.read(plane, rows, columns)


def test_unreadable_metadata_is_reported_with_its_file(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "p.zarr", pixels())
    (path / ".zattrs").write_text("{", encoding="utf-8")
    with pytest.raises(VolumeError, match=r"\.zattrs is not readable as JSON"):
        open_volume(path)
    array = write_array(tmp_path / "a.zarr", pixels())
    metadata = json.loads((array / ".zarray").read_text(encoding="utf-8"))
    metadata["compressor"] = {"id": "nonsense"}
    (array / ".zarray").write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(VolumeError, match="cannot be opened"):
        open_volume(array)


@pytest.mark.parametrize("broken", [[{}], {"a": 1}, [{"datasets": "0"}], [{"datasets": []}]])
def test_strange_multiscales_are_input_errors_not_crashes(tmp_path: Path, broken: object) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / ".zgroup").write_text('{"zarr_format": 2}', encoding="utf-8")
    (tmp_path / "g" / ".zattrs").write_text(json.dumps({"multiscales": broken}), encoding="utf-8")
    with pytest.raises(VolumeError):
        open_volume(tmp_path / "g")


def test_a_pyramid_of_plain_axis_names_is_read(tmp_path: Path) -> None:
    (tmp_path / ".zattrs").write_text(
        json.dumps({"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "full"}]}]}),
        encoding="utf-8",
    )
    pyramid = read_pyramid(LocalTree(tmp_path))
    assert (pyramid.paths, pyramid.axes) == (("full",), ("z", "y", "x"))


def write_scaled(path: Path, unit: str | None, scales: list[list[float]]) -> Path:
    write_pyramid(path, pixels())
    axes = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in "zyx"]
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for level, scale in enumerate(scales)
    ]
    zarr.open_group(str(path), mode="r+").attrs["multiscales"] = [{"axes": axes, "datasets": datasets}]
    return path


def test_levels_and_their_scale_are_told_by_the_metadata_or_by_the_shapes(tmp_path: Path) -> None:
    shapes = ((20, 50, 70), (10, 25, 35), (5, 13, 18))
    bare = open_volume(write_pyramid(tmp_path / "bare", pixels(), metadata=False), level=2)
    assert (bare.levels, bare.scale, bare.voxel_size) == (shapes, (4.0, 4.0, 4.0), None)
    flat = write_scaled(tmp_path / "flat", None, [[1, 1, 1], [1, 2, 2], [1, 4, 4]])
    assert open_volume(flat, level=2).scale == (1.0, 4.0, 4.0)
    assert open_volume(flat / "2").scale == (1.0, 4.0, 4.0)
    assert open_volume(flat).scale == (1.0, 1.0, 1.0)
    alone = open_volume(write_array(tmp_path / "alone.zarr", pixels()))
    assert (alone.levels, alone.scale) == (((20, 50, 70),), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("unit", "scale", "size"),
    [
        ("micrometer", [7.91, 7.91, 7.91], (7.91, 7.91, 7.91)),
        ("nanometer", [40.0, 8.0, 8.0], (0.04, 0.008, 0.008)),
        ("micrometer", [1.0, 1.0, 1.0], None),  # a writer that knows no size
        ("inch", [7.0, 7.0, 7.0], None),
        (None, [7.0, 7.0, 7.0], None),
    ],
)
def test_the_voxel_size_is_that_of_the_finest_level_where_the_metadata_says_it(
    tmp_path: Path, unit: str | None, scale: list[float], size: tuple[float, float, float] | None
) -> None:
    path = write_scaled(tmp_path / "v", unit, [[step * 2**level for step in scale] for level in range(3)])
    for level in (0, 2):
        volume = open_volume(path, level=level)
        assert volume.scale == (2.0**level,) * 3
        assert volume.voxel_size == (None if size is None else pytest.approx(size))


def test_a_level_that_is_damaged_spoils_no_other(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "p", pixels())
    (path / "1" / ".zarray").write_text("{")
    (path / "2" / ".zarray").unlink()
    assert open_volume(path).levels == ((20, 50, 70), (), ())


def test_chunks_of_no_pixels_are_refused(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.zarr", pixels(), chunks=(20, 50, 35))
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**metadata, "chunks": [0, 50, 35]}))
    with pytest.raises(VolumeError, match="hold nothing"):
        open_volume(path)
