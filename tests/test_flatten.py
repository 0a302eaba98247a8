"""Many planes of a surface volume become one mask, under the name of its fragment."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from result_samples import make_checkpoint, make_store

from embedcache.errors import ConfigError
from embedcache.results import predict
from embedcache.results.flatten import flattened, surface_name
from embedcache.results.masks_out import Values, write_masks
from embedcache.results.rle import decode_runs, encode_runs
from embedcache.results.submission import read_submission


@dataclass
class Stack:
    """Planes painted beforehand; those that are None are not predicted."""

    painted: Sequence[np.ndarray | None]
    uniform: bool = True

    @property
    def planes(self) -> list[int]:
        return [number for number, plane in enumerate(self.painted) if plane is not None]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(6, 7)] * len(self.painted)

    @property
    def names(self) -> list[str]:
        return [f"z={number}" for number in range(len(self.painted))]

    def probabilities(self, plane: int) -> np.ndarray:
        found = self.painted[plane]
        assert found is not None
        return found


SURFACE = "/data/frag1/surface_volume"


@pytest.fixture
def stack() -> Stack:
    planes = np.random.default_rng(0).random((65, 6, 7), np.float32)
    planes[:, 0, 0] = np.nan
    planes[3:, 0, 1] = np.nan
    return Stack([None, *planes, None])


@pytest.mark.parametrize(("how", "joined"), [("mean", np.nanmean), ("max", np.nanmax)])
def test_each_pixel_is_joined_over_the_planes_that_say_something(stack: Stack, how: str, joined) -> None:
    found = flattened(stack, how, None, source=SURFACE).probabilities(0)
    planes = np.stack(stack.painted[1:-1]).reshape(65, -1)
    assert np.isnan(found[0, 0])
    np.testing.assert_allclose(found.ravel()[1:], joined(planes[:, 1:], axis=0), rtol=1e-5)


def test_a_mean_of_many_equal_planes_is_their_value() -> None:
    plane = np.full((6, 7), np.float32(0.1))
    found = flattened(Stack([plane] * 2000), "mean", None).probabilities(0)
    np.testing.assert_array_equal(found, plane)


def test_a_surface_volume_becomes_one_line_under_the_name_of_its_fragment(
    tmp_path: Path, stack: Stack
) -> None:
    joined = flattened(stack, "mean", None, source=SURFACE)
    write_masks(tmp_path / "sub.csv", joined, Values(0.5), about={})
    with (tmp_path / "sub.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows == [["Id", "Predicted"], ["frag1", encode_runs(joined.probabilities(0) > 0.5)]]


def test_predict_writes_one_line_for_a_fragments_surface(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 64)] * 3, source=str(tmp_path / "frag1" / "surface_volume"))
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    planes = predict(store, checkpoint)
    mean = np.mean([planes.probabilities(plane) for plane in range(3)], axis=0)
    threshold = float(np.median(mean)) + 1e-4
    predict(store, checkpoint, tmp_path / "o.csv", flatten="mean", threshold=threshold)
    cells = read_submission(tmp_path / "o.csv")
    assert list(cells) == ["frag1"]
    found = decode_runs(cells["frag1"], (64, 64))
    clear = np.abs(mean - threshold) > 1e-6
    assert 0.1 < found.mean() < 0.9
    np.testing.assert_array_equal(found[clear], (mean > threshold)[clear])


def test_one_plane_of_a_fragment_is_called_as_the_fragment_in_a_csv_only(tmp_path: Path) -> None:
    plane = np.random.default_rng(1).random((6, 7), np.float32)
    named = flattened(Stack([None, plane]), "none", None, source=SURFACE)
    for output in ("sub.csv", "masks.zarr"):
        write_masks(tmp_path / output, named, Values(0.5), about={})
    assert (tmp_path / "sub.csv").read_text().splitlines()[1].startswith("frag1,")
    attributes = zarr.open_group(str(tmp_path / "masks.zarr"), mode="r").attrs["embedcache"]
    assert attributes["predicted"] == ["z=1"]


def test_planes_of_what_is_no_fragment_keep_their_names(tmp_path: Path) -> None:
    stack = Stack([np.ones((6, 7), np.float32)] * 2)
    for source, planes in (("/data/scroll.zarr", stack), (SURFACE, stack)):
        write_masks(tmp_path / "m.csv", flattened(planes, "none", None, source=source), Values(0.5), about={})
        assert (tmp_path / "m.csv").read_text() == "Id,Predicted\nz=0,1 42\nz=1,1 42\n"


def test_a_name_that_is_given_wins(tmp_path: Path, stack: Stack) -> None:
    write_masks(tmp_path / "m.csv", flattened(stack, "max", "a,b", source=SURFACE), Values(0.5), about={})
    assert (tmp_path / "m.csv").read_text().splitlines()[1].startswith('"a,b",')


@pytest.mark.parametrize("name", ["out.png", "out.tif", "out.zarr", "out"])
def test_a_flattened_prediction_is_one_plane_in_every_form(tmp_path: Path, stack: Stack, name: str) -> None:
    joined = flattened(stack, "mean", None, source=SURFACE)
    write_masks(tmp_path / name, joined, Values(0.5), about={})
    wanted = (joined.probabilities(0) > 0.5) * 255
    if name == "out.zarr":
        np.testing.assert_array_equal(zarr.open_group(str(tmp_path / name), mode="r")["0"], wanted[None])
        return
    path = tmp_path / name / "frag1.png" if name == "out" else tmp_path / name
    np.testing.assert_array_equal(np.asarray(Image.open(path)), wanted)


def test_names_of_several_planes_other_words_and_images_are_refused(stack: Stack) -> None:
    with pytest.raises(ConfigError, match="65 planes"):
        flattened(stack, "none", "a")
    with pytest.raises(ConfigError, match="'median'"):
        flattened(stack, "median", None)
    with pytest.raises(ConfigError, match="no name"):
        flattened(stack, "mean", " ")
    with pytest.raises(ConfigError, match="67 images"):
        flattened(Stack(stack.painted, uniform=False), "mean", None)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (SURFACE, "frag1"),
        ("/data/frag1/ir.png", "frag1"),
        ("/p/paths/20230827161847/layers", "20230827161847"),
        ("/s/seg7/surface-volumes/7.91um-x.zarr", "seg7"),
        ("/s/seg7/seg7.zarr", "seg7"),
        ("s3://bucket/seg7/surface-volumes/7.91um-x.zarr", "seg7"),
        ("/data/scroll.zarr", None),
        ("/data/scroll.zarr/2", None),
        ("/data/photos", None),
        ("", None),
    ],
)
def test_the_surface_of_a_fragment_or_segment_is_known_by_its_place(source: str, name: str | None) -> None:
    assert surface_name(source) == name
