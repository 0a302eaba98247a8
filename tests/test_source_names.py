"""What a path or address says by its parts: what the volume is called, and how large its voxels are."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_samples import write_volume

from embedcache.volume.layouts import absolute_source, source_stem
from embedcache.volume.meta import voxel_size_in_name, voxel_size_of


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("/data/scroll1.zarr", "scroll1"),
        ("/data/scroll1.zarr/", "scroll1"),
        ("/data/scroll1.zarr/2", "scroll1"),
        ("/data/54keV_7.91um_Scroll1A.zarr", "54keV_7.91um_Scroll1A"),
        ("/data/frag1/surface_volume", "frag1"),
        ("fragment:/data/frag1/", "frag1"),
        ("/data/frag1/ir.png", "frag1"),
        ("ir.png", "ir"),
        ("/data/P.volpkg/paths/77/layers", "77"),
        ("/data/P.volpkg/volumes/2023", "2023"),
        ("/data/seg/surface-volumes/2.4um-volume-1.zarr", "seg"),
        ("/data/seg/seg.zarr", "seg"),
        ("/data/stack/00.tif", "00"),
        ("/data/v.nii.gz", "v"),
        ("/data/v.ome.zarr", "v"),
        ("/data/v.h5:group/raw", "v"),
        ("https://user:word@host/a%20b/scroll.zarr/?token=1", "scroll"),
        ("s3://bucket/PHerc0/segments/77/surface-volumes/x.zarr/", "77"),
        ("s3://bucket", "bucket"),
        ("/", "volume"),
        ("/data/.zarr", "volume"),
    ],
)
def test_a_volume_is_called_by_its_own_name_or_that_of_its_fragment_or_segment(
    source: str, stem: str
) -> None:
    assert source_stem(source) == stem


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("/data/20260411134726-2.400um-0.2m-78keV-masked.zarr", 2.4),
        ("/data/54keV_7.91um/20230827161847.zarr", 7.91),
        ("https://host/Scroll3/53keV_3.24µm.zarr/2/", 3.24),
        ("/data/2.4um-resampled-from-7.91um.zarr", None),
        ("/data/0.2m-78keV.zarr", None),
        ("/data/0um.zarr", None),
        ("/data/7umbrellas.zarr", None),
        ("/7.91um/a/b/c/d/e.zarr", None),
    ],
)
def test_voxel_sizes_are_read_from_names_unless_they_contradict(name: str, size: float | None) -> None:
    assert voxel_size_in_name(name) == (None if size is None else (size,) * 3)


def test_what_meta_json_says_of_voxels_counts_before_the_name(tmp_path: Path) -> None:
    folder = write_volume(tmp_path / "9.36um")
    assert voxel_size_of(folder) == (7.91,) * 3
    for wrong in (0, -1, "7.91", None, True):
        write_volume(folder, voxelsize=wrong)
        assert voxel_size_of(folder) == (9.36,) * 3


def test_a_source_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("a/v.zarr") == f"{tmp_path}/a/v.zarr"
    assert absolute_source("fragment:a") == f"fragment:{tmp_path}/a"
    assert absolute_source("v.h5:raw") == f"{tmp_path}/v.h5:raw"
    assert absolute_source("s3://bucket/v.zarr") == "s3://bucket/v.zarr"
