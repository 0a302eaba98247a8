"""Labels of a surface come as stacks with one filled plane: that plane is the label of all."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from training_stores import blob_labels, make_store

from embedcache.errors import LabelError
from embedcache.store import EmbeddingStore
from embedcache.train.truth.flat_stack import is_ink, known_as_flat, only_filled_plane
from embedcache.train.truth.labels import open_labels
from embedcache.volume import open_volume

PLANES, FILLED = 65, 32
INK = blob_labels(1, 64, 96)[0]


def stack(filled: int = FILLED, planes: int = PLANES) -> np.ndarray:
    labels = np.zeros((planes, *INK.shape), np.uint8)
    labels[filled] = INK
    return labels


def pyramid(path: Path, labels: np.ndarray, levels: int = 6) -> Path:
    """A pyramid as vesuvius writes it: zarr v2, each level every second pixel of the one before, in depth too."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for level in range(levels):
        step = 2**level
        data = labels[::step, ::step, ::step]
        group.create_array(str(level), data=data, chunks=tuple(min(32, n) for n in data.shape))
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * 3}]}
        for n in range(levels)
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


@pytest.fixture(scope="module")
def surface(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """A surface volume's store: 65 planes, of which only a few tiles are made."""
    return make_store(tmp_path_factory.mktemp("flat") / "s.zarr", stack(), tile=64, wanted=range(28, 36))


@pytest.mark.parametrize("kind", ["pyramid", "tif", "zarr"])
def test_ink_in_one_of_65_planes_is_the_label_of_all(
    surface: EmbeddingStore, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"s7_inklabels_v2.{'tif' if kind == 'tif' else 'zarr'}"
    if kind == "pyramid":
        pyramid(path, stack())
    elif kind == "tif":
        tifffile.imwrite(path, stack(), photometric="minisblack")
    else:
        zarr.save_array(str(path), stack())
    labels = open_labels(path, surface)
    assert labels.same_for_all_planes
    assert labels.planes == set(range(PLANES))
    assert (
        "labels lie in plane 32 of 65 only: they are taken as one 2-D label for all planes"
        in labels.alignment
    )
    for plane in (0, 31, 64):
        tile = next(surface.tile(n) for n in range(len(surface)) if surface.table[n, 0] == plane)
        assert np.array_equal(labels.crop(tile), INK[tile.slices] > 0)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_flat_stack_of_another_level_is_brought_to_the_encoded_one(
    surface: EmbeddingStore, tmp_path: Path, factor: int
) -> None:
    blocks = INK[::4, ::4].repeat(4, 0).repeat(4, 1)
    coarse = np.zeros((PLANES // factor, INK.shape[0] // factor, INK.shape[1] // factor), np.uint8)
    coarse[7] = blocks[::factor, ::factor]
    fine = np.zeros((9, INK.shape[0] * factor, INK.shape[1] * factor), np.uint8)
    fine[4] = blocks.repeat(factor, 0).repeat(factor, 1)
    for name, data, words in (("coarse", coarse, "coarser"), ("fine", fine, "finer")):
        zarr.save_array(str(tmp_path / f"{name}_inklabels.zarr"), data)
        labels = open_labels(tmp_path / f"{name}_inklabels.zarr", surface)
        assert f"labels are {factor} times {words}" in labels.alignment
        tile = surface.tile(3)
        assert np.array_equal(labels.crop(tile), blocks[tile.slices] > 0)


def test_flat_masks_lie_on_all_planes_too(surface: EmbeddingStore, tmp_path: Path) -> None:
    masks = stack()
    masks[FILLED] = 0
    masks[FILLED, :, :40] = 1
    for name, data in (("inklabels", stack()), ("supervision_mask", masks), ("validation_mask", masks)):
        zarr.save_array(str(tmp_path / f"s7_{name}.zarr"), data)
    labels = open_labels(
        tmp_path / "s7_inklabels.zarr",
        surface,
        supervision=tmp_path / "s7_supervision_mask.zarr",
        validation=tmp_path / "s7_validation_mask.zarr",
    )
    assert "the supervision mask lies in plane 32 of 65 only: it is taken as one 2-D" in labels.alignment
    tile = surface.tile(0)
    assert tile.plane != FILLED
    assert labels.supervised(tile)[:, :40].all()
    assert not labels.supervised(tile)[:, 40:].any()
    assert labels.held_out(tile)


def test_labels_outlive_a_workers_pickle_at_their_plane_and_level(
    surface: EmbeddingStore, tmp_path: Path
) -> None:
    labels = open_labels(pyramid(tmp_path / "s7_inklabels.zarr", stack()), surface)
    again = pickle.loads(pickle.dumps(labels))
    for number in (0, 40):
        assert np.array_equal(again.crop(surface.tile(number)), labels.crop(surface.tile(number)))
    aligned = labels._aligned
    coarse = open_volume(tmp_path / "s7_inklabels.zarr", level=2)
    object.__setattr__(aligned, "volume", coarse)
    assert pickle.loads(pickle.dumps(aligned)).volume.plane_size(0) == coarse.plane_size(0) != INK.shape


def test_two_filled_planes_or_another_name_are_read_plane_by_plane(
    surface: EmbeddingStore, tmp_path: Path
) -> None:
    two = stack()
    two[40] = INK
    zarr.save_array(str(tmp_path / "s7_inklabels.zarr"), two)
    labels = open_labels(tmp_path / "s7_inklabels.zarr", surface)
    assert not labels.same_for_all_planes
    assert not labels.crop(surface.tile(0)).any()
    zarr.save_array(str(tmp_path / "nuclei.zarr"), stack())
    assert not open_labels(tmp_path / "nuclei.zarr", surface).same_for_all_planes


def test_composite_planes_take_flat_labels_of_any_name_and_no_others(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", stack()[:1], tile=64, channels="depth:26-28,30-32,34-36")
    zarr.save_array(str(tmp_path / "truth.zarr"), stack())
    assert open_labels(tmp_path / "truth.zarr", store).planes == {0}
    two = stack()
    two[3] = 255
    zarr.save_array(str(tmp_path / "deep.zarr"), two)
    with pytest.raises(LabelError, match="made of several slices") as caught:
        open_labels(tmp_path / "deep.zarr", store)
    assert "2-D" in (caught.value.hint or "")


@settings(max_examples=12, deadline=None)
@given(
    filled=st.sets(st.integers(0, 6), max_size=3),
    y=st.integers(0, 39),
    x=st.integers(0, 52),
    chunk=st.integers(5, 60),
)
def test_the_only_filled_plane_is_found_wherever_its_pixel_lies(
    tmp_path_factory: pytest.TempPathFactory, filled: set[int], y: int, x: int, chunk: int
) -> None:
    labels = np.zeros((7, 40, 53), np.uint8)
    for plane in filled:
        labels[plane, y, x] = 1
    path = tmp_path_factory.mktemp("one") / "a.zarr"
    zarr.create_array(str(path), data=labels, chunks=(3, min(chunk, 40), min(chunk, 53)))
    assert only_filled_plane(open_volume(path)) == (next(iter(filled)) if len(filled) == 1 else None)


def test_of_a_pyramid_only_what_may_hold_labels_is_read_in_full(tmp_path: Path) -> None:
    labels = np.zeros((9, 1024, 1024), np.uint8)
    labels[8, 200:260, 300:380] = 1
    volume = open_volume(pyramid(tmp_path / "p.zarr", labels, levels=4))
    assert only_filled_plane(volume) == 8
    assert volume.reads.bytes < labels.nbytes / 8


@pytest.mark.parametrize(
    ("source", "flat", "ink"),
    [
        ("/d/s7_inklabels_v3.zarr", True, True),
        ("/d/s7_inklabels.zarr/0", True, True),
        ("/d/f1/inklabels.png", True, True),
        ("/d/1.5_supervision_mask.tif", True, False),
        ("/d/s_validation_mask.ome.zarr", True, False),
        ("/d/myinklabels.zarr", False, False),
        ("/d/labels.zarr", False, False),
    ],
)
def test_names_of_surface_labels(source: str, flat: bool, ink: bool) -> None:
    assert (known_as_flat(source), is_ink(source)) == (flat, ink)
