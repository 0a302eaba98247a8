from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.volume import ImageVolume, Volume, open_volume

WHOLE = slice(None)


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    high = 65536 if dtype == "uint16" else 256
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(dtype)


def whole(volume: Volume, plane: int = 0) -> np.ndarray:
    return volume.read(plane, WHOLE, WHOLE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (("2.png", (20, 30)), ("10.png", (40, 10)), ("1.jpg", (16, 16))):
        Image.fromarray(noise(*size)).save(tmp_path / name)
    (tmp_path / "._2.png").write_bytes(b"a resource fork")
    (tmp_path / "notes.txt").write_text("not an image", encoding="utf-8")
    return tmp_path


def test_a_folder_is_a_collection_in_natural_order_each_image_of_its_own_size(folder: Path) -> None:
    volume = open_volume(folder)
    assert (volume.kind, volume.uniform, volume.channels, volume.dtype) == ("images", False, 1, np.uint8)
    assert [volume.plane_name(plane) for plane in range(3)] == ["1.jpg", "2.png", "10.png"]
    assert [volume.plane_size(plane) for plane in range(3)] == [(16, 16), (20, 30), (40, 10)]
    np.testing.assert_array_equal(volume.read(1, slice(3, 9), slice(5, 30)), noise(20, 30)[3:9, 5:30])


def test_one_image_is_a_collection_of_one(folder: Path) -> None:
    volume = open_volume(folder / "2.png")
    assert (volume.n_planes, volume.plane_name(0), volume.uniform) == (1, "2.png", False)


def test_an_image_record_holds_the_digest_of_the_file(folder: Path) -> None:
    record = open_volume(folder).image_record(1)
    assert (record.name, record.height, record.width) == ("2.png", 20, 30)
    assert record.sha256 == hashlib.sha256((folder / "2.png").read_bytes()).hexdigest()
    assert type(record).from_dict(record.to_dict()) == record


def test_reordering_keeps_the_list_appends_the_new_and_remembers_the_missing(folder: Path) -> None:
    volume = open_volume(folder)
    assert isinstance(volume, ImageVolume)
    again = volume.reordered(["10.png", "gone.png"])
    assert [again.plane_name(plane) for plane in range(4)] == ["10.png", "gone.png", "1.jpg", "2.png"]
    assert [again.has(plane) for plane in range(4)] == [True, False, True, True]
    np.testing.assert_array_equal(whole(again, 0), noise(40, 10))
    for call in (again.plane_size, again.image_record, lambda plane: whole(again, plane)):
        with pytest.raises(VolumeError, match=r"gone\.png is not in"):
            call(1)
    with pytest.raises(VolumeError, match="twice"):
        volume.reordered(["1.jpg", "1.jpg"])


def test_grey_images_among_coloured_ones_are_read_as_colour(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 9)).save(tmp_path / "1.png")
    Image.fromarray(noise(8, 9, 3)).save(tmp_path / "2.png")
    volume = open_volume(tmp_path)
    assert volume.channels == 3
    np.testing.assert_array_equal(whole(volume, 0), np.repeat(noise(8, 9)[..., None], 3, axis=2))
    np.testing.assert_array_equal(whole(volume, 1), noise(8, 9, 3))


def palette_image(colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(noise(6, 7) % len(colours)).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(noise(6, 7) > 128), (noise(6, 7) > 128) * np.uint8(255)),
        (Image.fromarray(noise(6, 7)), noise(6, 7)),
        (Image.fromarray(noise(6, 7, dtype="uint16")), noise(6, 7, dtype="uint16")),
        (Image.fromarray(noise(6, 7, 4), "RGBA"), noise(6, 7, 4)[..., :3]),
        (Image.merge("LA", [Image.fromarray(noise(6, 7)), Image.fromarray(noise(6, 7))]), noise(6, 7)),
        (palette_image([(0, 0, 0), (255, 0, 7)]), np.uint8([(0, 0, 0), (255, 0, 7)])[noise(6, 7) % 2]),
        (palette_image([(9, 9, 9), (200, 200, 200)]), np.uint8([9, 200])[noise(6, 7) % 2]),
    ],
    ids=["1 bit", "grey", "16 bit", "RGBA", "LA", "palette", "grey palette"],
)
def test_png_modes_are_read_without_cutting_bytes(
    tmp_path: Path, image: Image.Image, expected: np.ndarray
) -> None:
    image.save(tmp_path / "a.png")
    volume = open_volume(tmp_path / "a.png")
    assert volume.channels == (3 if expected.ndim == 3 else 1)
    assert volume.dtype == expected.dtype
    np.testing.assert_array_equal(whole(volume), expected)


def test_16_bit_colour_is_refused_rather_than_cut_to_8_bits(tmp_path: Path) -> None:
    Image.fromarray(noise(6, 7, 3)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[24] = 16
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(VolumeError, match="16-bit colours"):
        open_volume(tmp_path / "a.png")


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(8, 24)).save(tmp_path / "a.jpg", exif=exif)
    assert open_volume(tmp_path / "a.jpg").plane_size(0) == (8, 24)
    assert whole(open_volume(tmp_path / "a.jpg")).shape == (8, 24)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_orientation_tag_of_tiff_is_left_alone_too(tmp_path: Path, compression: str | None) -> None:
    Image.fromarray(noise(8, 24)).save(tmp_path / "a.tif", compression=compression, tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.tif")), noise(8, 24))


def test_large_images_raise_no_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(50, 60)).save(tmp_path / "a.png")
    Image.fromarray(noise(50, 60)).save(tmp_path / "b.jpg")
    Image.fromarray(noise(50, 60)).save(tmp_path / "c.tif", compression="tiff_lzw")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "b.jpg", "c.tif"):
            assert whole(open_volume(tmp_path / name)).shape == (50, 60)


def test_the_format_follows_from_the_bytes_not_from_the_ending(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 9)).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "named.jpg")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "named.jpg")), noise(8, 9))


def test_damaged_images_are_named(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(VolumeError, match=r"a\.png cannot be read as an image"):
        whole(open_volume(tmp_path / "a.png"))
    (tmp_path / "b.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(VolumeError, match="neither PNG nor JPEG"):
        open_volume(tmp_path / "b.jpg")


def test_images_of_two_types_are_not_one_volume(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 9)).save(tmp_path / "1.png")
    Image.fromarray(noise(8, 9, dtype="uint16")).save(tmp_path / "2.png")
    with pytest.raises(VolumeError, match=r"2\.png holds uint16 pixels, 1\.png uint8"):
        open_volume(tmp_path)


def test_a_file_that_changed_its_size_since_is_named(folder: Path) -> None:
    volume = open_volume(folder)
    Image.fromarray(noise(9, 9)).save(folder / "2.png")
    with pytest.raises(VolumeError, match="9 × 9 pixels now"):
        whole(volume, 1)


# --- TIFF -------------------------------------------------------------------------------------------------

STACK = {"uint8": noise(12, 30, 40), "uint16": noise(12, 30, 40, dtype="uint16")}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_folder_of_slices_is_a_stack_in_numeric_order(
    tmp_path: Path, dtype: str, compression: str | None, byteorder: str
) -> None:
    for plane, values in enumerate(STACK[dtype]):
        tifffile.imwrite(tmp_path / f"{plane}.tif", values, compression=compression, byteorder=byteorder)
    volume = open_volume(tmp_path)
    assert (volume.kind, volume.uniform, volume.n_planes) == ("tiff", True, 12)
    assert volume.plane_name(10) == "z=10"
    for plane in (0, 2, 10, 11):
        crop = volume.read(plane, slice(5, 30), slice(7, 20))
        assert crop.dtype == np.dtype(dtype)
        assert crop.dtype.isnative
        np.testing.assert_array_equal(crop, STACK[dtype][plane, 5:30, 7:20])


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"metadata": None}, {"tile": (16, 16)}, {"imagej": True}, {"bigtiff": True},
     {"compression": "zlib", "predictor": True}, {"rowsperstrip": 7, "metadata": None}],
    ids=str,
)  # fmt: skip
def test_a_multi_page_file_is_read_page_by_page(tmp_path: Path, options: dict[str, object]) -> None:
    values = STACK["uint16"]
    tifffile.imwrite(tmp_path / "s.tif", values, photometric="minisblack", **options)
    volume = open_volume(tmp_path / "s.tif")
    assert (volume.kind, volume.uniform, volume.n_planes) == ("tiff", True, 12)
    for plane in (11, 0, 5):
        np.testing.assert_array_equal(
            volume.read(plane, slice(1, 29), slice(3, 40)), values[plane, 1:29, 3:40]
        )


def test_lzw_is_read_without_further_packages(tmp_path: Path) -> None:
    pages = [Image.fromarray(plane) for plane in STACK["uint16"]]
    pages[0].save(tmp_path / "s.tif", compression="tiff_lzw", save_all=True, append_images=pages[1:])
    volume = open_volume(tmp_path / "s.tif")
    assert volume.n_planes == 12
    np.testing.assert_array_equal(whole(volume, 7), STACK["uint16"][7])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [3, 4])
def test_colour_tiff_is_read_and_its_transparency_dropped(tmp_path: Path, planar: str, samples: int) -> None:
    values = noise(30, 40, samples, dtype="uint16")
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    extra = {"extrasamples": ["unassalpha"]} if samples == 4 else {}
    tifffile.imwrite(tmp_path / "c.tif", stored, photometric="rgb", planarconfig=planar, **extra)
    volume = open_volume(tmp_path / "c.tif")
    assert (volume.channels, volume.n_planes) == (3, 1)
    np.testing.assert_array_equal(volume.read(0, slice(2, 9), slice(0, 40)), values[2:9, :, :3])


@pytest.mark.parametrize("compression", [None, "group4"])
def test_one_bit_masks_are_0_and_255_whichever_way_round_they_are_stored(
    tmp_path: Path, compression: str | None
) -> None:
    mask = noise(16, 24) > 128
    Image.fromarray(mask).save(tmp_path / "m.tif", compression=compression)
    volume = open_volume(tmp_path / "m.tif")
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(whole(volume), mask * np.uint8(255))


def test_white_is_bright_even_where_it_is_stored_as_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "w.tif", noise(8, 9), photometric="miniswhite")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "w.tif")), 255 - noise(8, 9))


def test_a_palette_tiff_is_read_in_its_colours(tmp_path: Path) -> None:
    palette_image([(0, 0, 0), (255, 0, 7)]).save(tmp_path / "p.tif")
    expected = np.uint8([(0, 0, 0), (255, 0, 7)])[noise(6, 7) % 2]
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "p.tif")), expected)


def test_tiff_files_of_different_sizes_are_a_collection(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "1.tif", noise(8, 9))
    tifffile.imwrite(tmp_path / "2.tif", noise(5, 6), compression="zlib")
    volume = open_volume(tmp_path)
    assert (volume.kind, volume.uniform) == ("images", False)
    np.testing.assert_array_equal(whole(volume, 0), noise(8, 9))
    np.testing.assert_array_equal(whole(volume, 1), noise(5, 6))
    assert volume.image_record(1).sha256 == hashlib.sha256((tmp_path / "2.tif").read_bytes()).hexdigest()


def test_reduced_copies_in_a_pyramid_are_not_planes(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(noise(32, 40), metadata=None)
        writer.write(noise(16, 20), subfiletype=1, metadata=None)
    assert open_volume(tmp_path / "p.tif").n_planes == 1


def test_pages_that_differ_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(noise(32, 40), metadata=None)
        writer.write(noise(16, 20), metadata=None)
    with pytest.raises(VolumeError, match="page 1 is 16 × 20 grey uint8, page 0 is 32 × 40"):
        open_volume(tmp_path / "p.tif")


def test_stacks_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("1.tif", "2.tif"):
        tifffile.imwrite(tmp_path / name, STACK["uint8"], photometric="minisblack")
    with pytest.raises(VolumeError, match=r"1\.tif has 12 pages: in a folder, each TIFF file is one plane"):
        open_volume(tmp_path)


def test_a_long_folder_is_opened_by_three_heads_and_each_plane_checked_when_read(tmp_path: Path) -> None:
    for plane in range(70):
        tifffile.imwrite(tmp_path / f"{plane}.tif", noise(8, 10), metadata=None)
    (tmp_path / "50.tif").unlink()
    tifffile.imwrite(tmp_path / "50.tif", noise(10, 8), metadata=None)
    volume = open_volume(tmp_path)
    assert volume.n_planes == 70
    np.testing.assert_array_equal(whole(volume, 49), noise(8, 10))
    with pytest.raises(
        VolumeError, match=r"50\.tif has 1 page\(s\) of 10 × 8 grey uint8, 0\.tif one of 8 × 10"
    ):
        whole(volume, 50)


def test_a_long_folder_of_equally_long_files_of_other_sizes_is_a_collection(tmp_path: Path) -> None:
    for plane in range(70):
        shape = (10, 8) if plane in (35, 50) else (8, 10)
        tifffile.imwrite(tmp_path / f"{plane}.tif", noise(*shape), metadata=None)
    volume = open_volume(tmp_path)
    assert (volume.kind, volume.n_planes) == ("images", 70)
    assert [volume.plane_size(plane) for plane in (0, 35, 50)] == [(8, 10), (10, 8), (10, 8)]


@pytest.mark.parametrize("keep", [0, 6, 0.5])
def test_damaged_tiff_files_are_named(tmp_path: Path, keep: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64), compression="zlib", metadata=None)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(VolumeError, match=r"a\.tif"):
        whole(open_volume(tmp_path / "a.tif"))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    "options", [{"compression": "zlib"}, {"compression": "zlib", "metadata": None}, {"metadata": None}, {},
                {"imagej": True}, {"bigtiff": True}], ids=str,
)  # fmt: skip
def test_a_stack_that_was_cut_short_is_refused_and_not_read_as_a_shorter_one(
    tmp_path: Path, options: dict[str, object], keep: float
) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK["uint16"], photometric="minisblack", **options)
    data = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(VolumeError, match=r"s\.tif.* (cut short|cannot be read)"):
        last_plane(tmp_path / "s.tif", planes=12)


def last_plane(path: Path, planes: int) -> np.ndarray:
    volume = open_volume(path)
    assert volume.n_planes == planes
    return whole(volume, planes - 1)


def test_an_imagej_stack_with_fewer_planes_than_it_says_is_refused(tmp_path: Path) -> None:
    description = "ImageJ=1.53\nimages=12\nslices=12\n"
    tifffile.imwrite(tmp_path / "s.tif", STACK["uint8"][0], description=description, metadata=None)
    with pytest.raises(VolumeError, match="says that it has 12 planes, and 1 can be read"):
        open_volume(tmp_path / "s.tif")


def test_a_slice_cut_short_after_opening_is_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64), metadata=None)
    volume = open_volume(tmp_path / "a.tif")
    assert whole(volume).shape == (64, 64)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:2000])
    with pytest.raises(VolumeError, match=r"a\.tif, page 0"):
        whole(volume)


def test_a_folder_of_both_kinds_asks_which(folder: Path) -> None:
    tifffile.imwrite(folder / "a.tif", noise(8, 9))
    with pytest.raises(VolumeError, match="1 TIFF and 3 PNG or JPEG files"):
        open_volume(folder)


@pytest.mark.parametrize(
    "stored",
    [
        {"compression": "zlib", "rowsperstrip": 5},
        {"compression": "zlib", "rowsperstrip": 150, "predictor": 2},
        {"compression": "zlib", "tile": (32, 48)},
        {"compression": "zlib", "tile": (144, 16), "photometric": "miniswhite"},
        {"tile": (64, 64)},
        {"compression": "zlib", "rowsperstrip": 7, "byteorder": ">"},
    ],
)
@pytest.mark.parametrize("colours", [(), (3,), (4,)])
def test_strips_and_tiles_give_the_pixels_of_the_whole_page(
    tmp_path: Path, stored: dict[str, object], colours: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 401, 350, *colours)).astype(np.uint16)
    colour = {"photometric": "rgb"} if colours else {}
    for plane, pixels in enumerate(values):
        tifffile.imwrite(tmp_path / f"{plane}.tif", pixels, metadata=None, **(stored | colour))  # type: ignore[arg-type]
    volume = open_volume(tmp_path)
    expected = ~values if "photometric" in stored and not colours else values
    assert volume.pieces is not None
    assert volume.pieces.chunk[1:] != (401, 350)  # not page by page
    for rows, columns in (
        (slice(0, 401), slice(0, 350)),
        (slice(127, 257), slice(47, 49)),
        (slice(400, 401), slice(3, 350)),
    ):
        crop = volume.read(1, rows, columns)
        assert crop.dtype.isnative
        np.testing.assert_array_equal(
            crop, expected[1, rows, columns][..., :3] if colours else expected[1, rows, columns]
        )
