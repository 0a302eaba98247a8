"""Folders as scroll people have them: each opens as the pixels in it, and what holds none says what to give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from layout_samples import (
    SURFACE,
    VALUES,
    write_fragment,
    write_layers,
    write_mesh,
    write_ome,
    write_volpkg,
    write_volume,
    write_zarr2,
)
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.volume import TileGrid, open_volume, resolve_preprocess, volume_identity

WHOLE = slice(None)


def identity(source: object, **options: object) -> object:
    with open_volume(str(source), **options) as volume:  # type: ignore[arg-type]
        return volume_identity(volume, TileGrid(16), resolve_preprocess(volume))


def refusal(source: object, **options: object) -> str:
    with pytest.raises(VolumeError) as caught:
        open_volume(str(source), **options)  # type: ignore[arg-type]
    return str(caught.value)


# --- fragments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["fragment:{}", "{}", "{}/"])
def test_a_fragment_is_the_same_volume_however_it_is_named(tmp_path: Path, source: str) -> None:
    folder = write_fragment(tmp_path / "a", SURFACE[:5])
    with open_volume(source.format(folder)) as volume:
        assert volume.source == str(folder / "surface_volume")
    assert identity(source.format(folder)) == identity(folder / "surface_volume")
    assert identity(source.format(folder), image="surface") == identity(folder / "surface_volume")


@pytest.mark.parametrize("image", ["ir", "ir.png", "mask"])
def test_another_image_of_a_fragment_is_the_file_itself(tmp_path: Path, image: str) -> None:
    folder = write_fragment(tmp_path / "a", SURFACE[:5])
    with open_volume(folder, image=image) as volume:
        assert volume.source == str(folder / f"{image.removesuffix('.png')}.png")
    tifffile.imwrite(folder / "other.tif", SURFACE[0])
    assert open_volume(folder, image="other").n_planes == 1


@pytest.mark.parametrize("beside", ["ir.png", "inklabels.png", "mask.png"])
def test_one_known_file_beside_the_surface_volume_makes_a_fragment(tmp_path: Path, beside: str) -> None:
    write_layers(tmp_path / "surface_volume", SURFACE[:3])
    said = refusal(tmp_path)
    assert "holds neither Zarr metadata" in said
    assert "It holds the folders surface_volume: give the path of the one with the slices." in said
    Image.fromarray(VALUES[0]).save(tmp_path / beside)
    assert open_volume(tmp_path).n_planes == 3


def test_a_fragment_named_as_such_needs_nothing_beside_what_is_asked_for(tmp_path: Path) -> None:
    write_layers(tmp_path / "bare" / "surface_volume", SURFACE[:3])
    assert open_volume(f"fragment:{tmp_path}/bare").n_planes == 3
    (tmp_path / "photo").mkdir()
    Image.fromarray(VALUES[0]).save(tmp_path / "photo" / "ir.png")
    assert open_volume(f"fragment:{tmp_path}/photo", image="ir").n_planes == 1
    assert "lacks surface_volume/" in refusal(f"fragment:{tmp_path}/photo")


def test_an_image_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    folder = write_fragment(tmp_path / "a", SURFACE[:2])
    assert "ir.png, mask.png" in refusal(folder, image="uv")
    for outside in ("../a/ir.png", str(folder / "ir.png"), ".."):
        assert f"--image {outside}" in refusal(folder, image=outside)
    assert f"--image ir: {tmp_path} is no fragment folder (it lacks surface_volume/)" in refusal(
        tmp_path, image="ir"
    )
    assert "--image is for fragment folders; leave it out." in refusal(tmp_path, image="ir")
    for inside in ("surface_volume", "ir.png"):
        assert f"Give {folder} with --image ir." in refusal(folder / inside, image="ir")
    (tmp_path / "photo").mkdir()
    Image.fromarray(VALUES[0]).save(tmp_path / "photo" / "ir.png")
    assert f"fragment:{tmp_path}/photo with --image ir" in refusal(tmp_path / "photo", image="ir")
    assert "is no fragment folder (it is a file)" in refusal(f"fragment:{folder}/ir.png")
    assert "does not exist" in refusal(f"fragment:{tmp_path}/nowhere")
    assert "folders of this machine" in refusal("fragment:https://host/a")


# --- volpkgs ------------------------------------------------------------------------------------------------


def test_a_volpkg_of_one_volume_is_that_volume(tmp_path: Path) -> None:
    folder = write_volpkg(tmp_path / "P.volpkg", "2023")
    assert identity(folder) == identity(folder / "volumes" / "2023")
    assert open_volume(folder).voxel_size == (7.91, 7.91, 7.91)


def test_of_several_volumes_of_a_volpkg_one_must_be_named(tmp_path: Path) -> None:
    folder = write_volpkg(tmp_path / "P.volpkg", "2023", "2024")
    write_ome(folder / "volumes_zarr" / "54keV_3.24um.zarr")
    said = refusal(folder)
    assert f"{folder} holds 3 volumes:" in said
    assert f"\n  2. {folder}/volumes/2024 (scan 2024, 6 × 30 × 40, 7.91 µm)" in said
    assert f"\n  3. {folder}/volumes_zarr/54keV_3.24um.zarr (6 × 30 × 40, 3.24 µm)" in said
    assert "Give the path of one." in said


def test_a_volpkg_of_zarr_volumes_opens_at_a_level(tmp_path: Path) -> None:
    write_ome(tmp_path / "P.volpkg" / "volumes_zarr_standardized" / "54keV_7.91um_Scroll1A.zarr")
    volume = open_volume(tmp_path / "P.volpkg", level=1)
    assert (volume.n_planes, volume.level, volume.voxel_size) == (3, 1, (7.91, 7.91, 7.91))


def test_a_volpkg_without_volumes_names_the_segments_that_it_has(tmp_path: Path) -> None:
    folder = write_volpkg(tmp_path / "P.volpkg")
    (folder / "volumes").mkdir()
    assert "copied in part" in refusal(folder)
    write_layers(folder / "paths" / "77" / "layers", SURFACE[:2])
    assert f"give one, such as {folder}/paths/77" in refusal(folder)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"slices": 14376}, "says 14,376 slices, 6 files are there: copied in part?"),
        ({"slices": 5}, "says 5 slices, 6 are there."),
        ({"width": 41}, "says slices of 30 × 41 pixels (height × width), the files have 30 × 40."),
    ],
)
def test_slices_that_are_not_what_their_meta_json_says_are_refused(
    tmp_path: Path, said: dict[str, int], words: str
) -> None:
    refused = refusal(write_volume(tmp_path / "2023", **said))
    assert words in refused
    assert "meta.json" in refused


def test_the_first_slice_that_is_missing_is_named_where_slices_are_numbered(tmp_path: Path) -> None:
    folder = write_volume(tmp_path / "2023")
    (folder / "00003.tif").unlink()
    assert "copied in part? The first that is missing is number 3." in refusal(folder)
    (folder / "00005.tif").rename(folder / "last.tif")
    assert "number" not in refusal(folder)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "{not json", '{"slices": "6"}', '{"slices": 14376}', '{"slices": true}']
)
def test_a_meta_json_that_is_not_about_slices_changes_nothing(tmp_path: Path, text: str) -> None:
    folder = write_layers(tmp_path / "v", VALUES)
    (folder / "meta.json").write_text(text)
    assert open_volume(folder).n_planes == 6


# --- segments -----------------------------------------------------------------------------------------------


def test_a_segment_is_its_layers_not_the_mask_beside_them(tmp_path: Path) -> None:
    segment = tmp_path / "20230827161847"
    write_layers(segment / "layers", SURFACE[:4])
    Image.fromarray(VALUES[0]).save(segment / "20230827161847_mask.png")
    assert identity(segment) == identity(segment / "layers")


@pytest.mark.parametrize("name", ["{}.tif", "slice_{:03}.tif"])
def test_numbered_slices_are_a_volume_by_themselves_whatever_lies_beside_them(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "scans"
    write_layers(folder / "layers", SURFACE[:2])
    for number, plane in enumerate(SURFACE[2:5]):
        tifffile.imwrite(folder / name.format(number), plane)
    with open_volume(folder) as volume:
        assert (volume.source, volume.n_planes) == (str(folder), 3)


def test_a_store_of_embeddings_in_a_folder_of_its_name_is_no_volume_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    for inside in ("image_embeddings", "journal"):
        (folder / "page.zarr" / inside).mkdir(parents=True)
    tifffile.imwrite(folder / "scan.tif", SURFACE[0])
    with open_volume(folder) as volume:
        assert volume.n_planes == 1


def test_of_several_surface_volumes_one_must_be_named(tmp_path: Path) -> None:
    write_ome(tmp_path / "surface-volumes" / "2.400um-78keV-volume-1.zarr")
    assert open_volume(tmp_path).voxel_size == (2.4, 2.4, 2.4)
    write_layers(tmp_path / "surface-volumes" / "7.91um-54keV-volume-2.tifs", SURFACE[:2])
    assert "7.91um-54keV-volume-2.tifs (2 × 48 × 40, 7.91 µm)" in refusal(tmp_path)


def test_a_mesh_alone_is_refused_and_a_renamed_segment_is_found_by_its_mesh(tmp_path: Path) -> None:
    segment = write_mesh(tmp_path / "renamed")
    assert "is a mesh (tifxyz), not pixels; give its surface volume." in refusal(segment)
    for name in ("77_inklabels.zarr", "77_supervision_mask_v2.zarr"):
        write_ome(segment / name, levels=1)
    assert "is a mesh (tifxyz)" in refusal(segment)
    write_ome(segment / "77.zarr", levels=1)
    assert open_volume(segment).source == str(segment / "77.zarr")


def test_three_coordinates_are_a_mesh_without_a_meta_json_too(tmp_path: Path) -> None:
    segment = write_mesh(tmp_path / "seg")
    (segment / "meta.json").unlink()
    assert "is a mesh" in refusal(segment)
    tifffile.imwrite(segment / "a.tif", np.zeros((8, 9), np.float32))  # four slices of whatever kind
    assert open_volume(segment).n_planes == 4


def test_what_is_zarr_itself_is_never_taken_for_a_layout(tmp_path: Path) -> None:
    write_ome(tmp_path / "seg")
    write_layers(tmp_path / "seg" / "layers", SURFACE[:2])
    assert open_volume(tmp_path / "seg").kind == "zarr"


# --- what others wrote --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [".", "/"])
def test_both_separators_of_zarr_2_and_a_leading_channel(tmp_path: Path, separator: str) -> None:
    write_zarr2(tmp_path / "v.zarr", VALUES[np.newaxis], separator=separator)
    with open_volume(tmp_path / "v.zarr") as volume:
        np.testing.assert_array_equal(volume.read(5, WHOLE, WHOLE), VALUES[5])
    assert json.loads((tmp_path / "v.zarr" / ".zarray").read_text())["dimension_separator"] == separator


def test_bigtiff_of_several_pages_opens_as_planes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "v.tif", SURFACE[:4], bigtiff=True, photometric="minisblack")
    with open_volume(tmp_path / "v.tif") as volume:
        np.testing.assert_array_equal(volume.read(3, WHOLE, WHOLE), SURFACE[3])
