from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from embedcache.errors import InputError, StorageError
from embedcache.results.masks_out import Values, write_masks
from embedcache.results.rle import encode_runs


@dataclass
class Painted:
    """Planes painted beforehand; those not in ``painted`` are not predicted."""

    sizes: Sequence[tuple[int, int]]
    painted: dict[int, np.ndarray] = field(default_factory=dict)
    uniform: bool = True

    @property
    def planes(self) -> list[int]:
        return sorted(self.painted)

    @property
    def names(self) -> list[str]:
        return [f"z={i}" if self.uniform else f"photo_{i}.jpg" for i in range(len(self.sizes))]

    def probabilities(self, plane: int) -> np.ndarray:
        return self.painted[plane]


@pytest.fixture
def stack() -> Painted:
    planes = np.random.default_rng(0).random((2, 6, 7), np.float32)
    planes[0, :2] = np.nan
    return Painted([(6, 7)] * 4, {1: planes[0], 2: planes[1]})


@pytest.fixture
def photos() -> Painted:
    rng = np.random.default_rng(1)
    sizes = [(5, 8), (9, 4), (3, 3)]
    return Painted(sizes, {i: rng.random(sizes[i], np.float32) for i in (0, 1)}, uniform=False)


MASK = Values(0.5)


def test_zarr_holds_the_masks_in_their_planes_with_ome_metadata(tmp_path: Path, stack: Painted) -> None:
    write_masks(tmp_path / "m.zarr", stack, MASK, about={"threshold": 0.5})
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")
    masks = group["0"][...]
    assert masks.dtype == np.uint8
    assert masks.shape == (4, 6, 7)
    np.testing.assert_array_equal(masks[2], (stack.painted[2] > 0.5) * 255)
    assert not masks[[0, 3]].any()
    assert not masks[1, :2].any()
    assert group.attrs["ome"]["version"] == "0.5"
    assert group.attrs["ome"]["multiscales"][0]["datasets"][0]["path"] == "0"
    assert group.attrs["embedcache"]["predicted"] == ["z=1", "z=2"]


@pytest.mark.parametrize(
    ("geometry", "scale", "unit"),
    [
        ({"scale": [2.0, 4.0, 4.0], "voxel_size": [7.91, 7.91, 7.91]}, [15.82, 31.64, 31.64], "micrometer"),
        ({"scale": [2.0, 4.0, 4.0], "voxel_size": None}, [2.0, 4.0, 4.0], None),
        ({}, [1.0, 1.0, 1.0], None),
    ],
)
def test_a_zarr_lies_in_the_full_resolution_in_micrometres_where_these_are_known(
    tmp_path: Path, stack: Painted, photos: Painted, geometry: dict, scale: list[float], unit: str | None
) -> None:
    for planes, path, axes in ((stack, "", 3), (photos, "photo_0", 2)):
        write_masks(tmp_path / "m.zarr", planes, MASK, about={"geometry": geometry})
        image = zarr.open_group(str(tmp_path / "m.zarr"), mode="r", path=path)
        found = image.attrs["ome"]["multiscales"][0]
        steps = found["datasets"][0]["coordinateTransformations"][0]["scale"]
        np.testing.assert_allclose(steps, scale[-axes:])
        assert [axis.get("unit") for axis in found["axes"]] == [unit] * axes


def test_probabilities_in_zarr_are_nan_where_not_predicted(tmp_path: Path, stack: Painted) -> None:
    write_masks(tmp_path / "p.zarr", stack, Values(0.5, probabilities=True), about={})
    stored = zarr.open_group(str(tmp_path / "p.zarr"), mode="r")["0"][...]
    assert np.isnan(stored[[0, 3]]).all()
    np.testing.assert_array_equal(stored[1], stack.painted[1])


def test_a_collection_becomes_one_zarr_image_per_photo(tmp_path: Path, photos: Painted) -> None:
    write_masks(tmp_path / "m.zarr", photos, MASK, about={})
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")
    assert sorted(name for name, _ in group.groups()) == ["photo_0", "photo_1"]
    np.testing.assert_array_equal(group["photo_1/0"][...], (photos.painted[1] > 0.5) * 255)


def test_tiff_pages_stay_in_step_with_planes(tmp_path: Path, stack: Painted) -> None:
    write_masks(tmp_path / "m.tif", stack, MASK, about={"threshold": 0.5})
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        assert len(file.pages) == 4
        np.testing.assert_array_equal(file.pages[2].asarray(), (stack.painted[2] > 0.5) * 255)
        assert not file.pages[3].asarray().any()
        notes = [json.loads(page.description) for page in file.pages]
    assert [note["is_predicted"] for note in notes] == [False, True, True, False]
    assert (notes[0]["predicted"], notes[2]["plane"]) == (["z=1", "z=2"], "z=2")


def test_tiff_pages_of_a_collection_keep_their_sizes(tmp_path: Path, photos: Painted) -> None:
    write_masks(tmp_path / "m.tiff", photos, Values(0.5, probabilities=True), about={})
    with tifffile.TiffFile(tmp_path / "m.tiff") as file:
        assert [page.shape for page in file.pages] == [(5, 8), (9, 4), (3, 3)]
        np.testing.assert_array_equal(file.pages[1].asarray(), photos.painted[1])
        assert np.isnan(file.pages[2].asarray()).all()


def test_a_folder_gets_one_png_per_predicted_photo_under_its_own_name(
    tmp_path: Path, photos: Painted
) -> None:
    write_masks(tmp_path / "masks", photos, MASK, about={})
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.png")) == ["photo_0.png", "photo_1.png"]
    pixels = np.asarray(Image.open(tmp_path / "masks" / "photo_1.png"))
    np.testing.assert_array_equal(pixels, (photos.painted[1] > 0.5) * 255)


def test_one_plane_may_be_one_png(tmp_path: Path, stack: Painted) -> None:
    single = Painted(stack.sizes, {1: stack.painted[1]})
    write_masks(tmp_path / "m.png", single, Values(0.5, probabilities=True), about={})
    pixels = np.asarray(Image.open(tmp_path / "m.png"))
    np.testing.assert_allclose(pixels / 255, np.nan_to_num(stack.painted[1]), atol=0.002)


def test_csv_has_a_line_per_predicted_photo(tmp_path: Path, photos: Painted) -> None:
    write_masks(tmp_path / "m.csv", photos, MASK, about={})
    with (tmp_path / "m.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["Id", "Predicted"]
    assert [row[0] for row in rows[1:]] == ["photo_0", "photo_1"]
    assert rows[1][1] == encode_runs(photos.painted[0] > 0.5)


def test_several_planes_are_refused_as_one_png(tmp_path: Path, stack: Painted) -> None:
    with pytest.raises(InputError, match="2 planes"):
        write_masks(tmp_path / "m.png", stack, MASK, about={})
    assert not (tmp_path / "m.png").exists()


def test_probabilities_are_refused_as_encode_runs(tmp_path: Path, stack: Painted) -> None:
    with pytest.raises(InputError, match="not probabilities"):
        write_masks(tmp_path / "m.csv", stack, Values(0.5, probabilities=True), about={})


def test_a_zarr_that_is_not_ours_is_never_replaced(tmp_path: Path, stack: Painted) -> None:
    zarr.create_array(str(tmp_path / "scan.zarr"), shape=(3,), dtype="uint8")[...] = 7
    with pytest.raises(InputError, match="not replaced"):
        write_masks(tmp_path / "scan.zarr", stack, MASK, about={})
    assert (zarr.open_array(str(tmp_path / "scan.zarr"), mode="r")[...] == 7).all()


def test_masks_of_an_earlier_run_are_replaced(tmp_path: Path, stack: Painted) -> None:
    for threshold in (0.2, 0.8):
        write_masks(tmp_path / "m.zarr", stack, Values(threshold), about={"threshold": threshold})
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")
    assert group.attrs["embedcache"]["threshold"] == 0.8
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]


def test_a_failure_half_way_leaves_the_earlier_masks(tmp_path: Path, stack: Painted) -> None:
    write_masks(tmp_path / "m.zarr", stack, MASK, about={"first": True})

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space"):
        write_masks(tmp_path / "m.zarr", stack, MASK, about={}, done=fail)
    assert zarr.open_group(str(tmp_path / "m.zarr"), mode="r").attrs["embedcache"]["first"]


def test_a_folder_of_pictures_is_replaced_as_a_whole(tmp_path: Path, stack: Painted) -> None:
    write_masks(tmp_path / "masks", stack, MASK, about={})
    write_masks(tmp_path / "masks", Painted(stack.sizes, {2: stack.painted[2]}), MASK, about={})
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["prediction.json", "z0002.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_a_folder_with_other_files_in_it_is_never_replaced(tmp_path: Path, photos: Painted) -> None:
    write_masks(tmp_path / "masks", photos, MASK, about={})
    (tmp_path / "masks" / "photo_9.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"photo_9\.png.*not replaced"):
        write_masks(tmp_path / "masks", photos, MASK, about={})
    assert (tmp_path / "masks" / "photo_9.png").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["m.zarr", "m", "m.csv"])
def test_images_of_one_stem_do_not_collide(tmp_path: Path, photos: Painted, name: str) -> None:
    class Twins(Painted):
        names = ("a.jpg", "a.png", "b.png")

    write_masks(tmp_path / name, Twins(photos.sizes, photos.painted, uniform=False), MASK, about={})
    if name == "m.zarr":
        found = [key for key, _ in zarr.open_group(str(tmp_path / name), mode="r").groups()]
    elif name == "m":
        found = [path.stem for path in (tmp_path / name).glob("*.png")]
    else:
        found = [line.split(",")[0] for line in (tmp_path / name).read_text().splitlines()[1:]]
    assert sorted(found) == ["a.jpg", "a.png"]


@pytest.mark.parametrize("name", ["m.tif", "m.zarr", "m.csv", "m"])
def test_a_failure_leaves_no_litter(tmp_path: Path, stack: Painted, name: str) -> None:
    def fail() -> None:
        raise RuntimeError("the decoder stopped")

    with pytest.raises(RuntimeError):
        write_masks(tmp_path / name, stack, MASK, about={}, done=fail)
    assert not list(tmp_path.iterdir())
