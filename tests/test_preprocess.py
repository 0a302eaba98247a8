from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from embedcache.errors import VolumeError
from embedcache.geometry import Tile, see
from embedcache.volume import Preprocess, Volume, open_volume, resolve_preprocess
from embedcache.volume.normalise import all_at_once, normalise

SIZES = [(1024, 1024), (512, 512), (700, 1800), (300, 1024), (1500, 1100), (37, 53), (1, 5)]


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    if dtype.startswith("float"):
        return rng.normal(10, 3, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def saved(folder: Path, values: np.ndarray) -> Volume:
    np.save(folder / "v.npy", values)
    return open_volume(folder / "v.npy")


def sam_predictor_input(image: np.ndarray) -> torch.Tensor:
    """What SamPredictor.set_image feeds to the encoder, step by step (image: H, W, 3 uint8)."""
    height, width = image.shape[:2]
    scale = 1024 * 1.0 / max(height, width)  # ResizeLongestSide.get_preprocess_shape
    target = int(height * scale + 0.5), int(width * scale + 0.5)
    # ResizeLongestSide.apply_image: np.array(resize(to_pil_image(image), target_size))
    resized = np.array(Image.fromarray(image, "RGB").resize(target[::-1], Image.Resampling.BILINEAR))
    x = torch.as_tensor(resized).permute(2, 0, 1).contiguous()[None]
    # Sam.preprocess
    x = (x - torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)) / torch.tensor(
        [58.395, 57.12, 57.375]
    ).view(-1, 1, 1)
    return functional.pad(x, (0, 1024 - x.shape[-1], 0, 1024 - x.shape[-2]))[0]


@pytest.mark.parametrize("size", SIZES)
def test_8_bit_colour_is_prepared_as_the_predictor_does(size: tuple[int, int]) -> None:
    image = noise(*size, 3)
    found = torch.from_numpy(Preprocess("rgb").to_input(image))
    assert found.shape == (3, 1024, 1024)
    assert found.dtype == torch.float32
    assert (found - sam_predictor_input(image)).abs().max() <= 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_8_bit_grey_is_prepared_as_the_predictor_does_with_three_equal_channels(
    size: tuple[int, int],
) -> None:
    image = noise(*size)
    found = torch.from_numpy(Preprocess("repeat").to_input(image))
    assert (found - sam_predictor_input(np.repeat(image[..., None], 3, axis=2))).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(512, 512), (300, 1024), (700, 1800)])
def test_float_pixels_give_the_same_but_for_rounding_to_8_bits(size: tuple[int, int]) -> None:
    image = noise(*size, 3)
    exact = Preprocess("rgb").to_input(image)
    scaled = Preprocess("rgb", (0, 510)).to_input(image.astype(np.float32) * 2)
    assert np.abs(exact - scaled).max() <= 1.01 / 57


def test_padding_is_zero_after_normalisation_not_black_before_it() -> None:
    found = Preprocess("repeat").to_input(noise(300, 1024))
    assert (found[:, 300:] == 0).all()
    assert (found[:, :300] != 0).any()


def test_16_bit_pixels_are_mapped_through_the_window_and_never_wrap() -> None:
    ramp = np.tile(np.arange(0, 65536, 64, dtype=np.uint16), (1024, 1))
    found = Preprocess("repeat", (1000, 50_000)).to_input(ramp)[0]
    assert (np.diff(found, axis=1) >= 0).all()
    expected = np.clip((ramp[0].astype(float) - 1000) / 49_000 * 255, 0, 255)
    np.testing.assert_allclose(found[5], (expected - 123.675) / 58.395, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float16", "float32", "float64", "uint16"])
def test_every_type_of_pixels_is_prepared(dtype: str) -> None:
    values = noise(64, 80, dtype=dtype)
    low, high = float(values.min()), float(values.max())
    found = Preprocess("repeat", (low, high)).to_input(values)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.std() > 0.1


def test_nan_stays_nan_so_that_it_can_be_found() -> None:
    values = noise(64, 64, dtype="float32")
    values[3, 4] = np.nan
    assert np.isnan(Preprocess("repeat", (0, 20)).to_input(values)).any()
    assert Preprocess("repeat", (0, 20)).to_image(values)[3, 4].tolist() == [0, 0, 0]


def test_a_tile_too_narrow_to_be_seen_is_refused() -> None:
    with pytest.raises(VolumeError, match="1 × 3000 pixels is too narrow"):
        Preprocess("repeat").to_input(noise(1, 3000))


def test_pictures_have_the_tiles_own_size_and_three_equal_channels() -> None:
    grey = noise(20, 30)
    picture = Preprocess("repeat").to_image(grey)
    assert (picture.shape, picture.dtype) == ((20, 30, 3), np.uint8)
    np.testing.assert_array_equal(picture[..., 1], grey)
    np.testing.assert_array_equal(Preprocess("rgb").to_image(noise(20, 30, 3)), noise(20, 30, 3))
    ramp = np.array([[0, 100, 200, 300]], np.uint16)
    assert Preprocess("repeat", (100, 200)).to_image(ramp)[0, :, 0].tolist() == [0, 0, 255, 255]


# --- colour recipes -----------------------------------------------------------------------------------------

TILE = Tile(3, 5, 7, 20, 30)
PART = (slice(5, 25), slice(7, 37))


def test_adjacent_planes_become_the_colours_and_stop_at_the_ends(tmp_path: Path) -> None:
    values = noise(8, 40, 50)
    volume = saved(tmp_path, values)
    recipe = resolve_preprocess(volume, channels="adjacent:2")
    np.testing.assert_array_equal(recipe.read(volume, TILE), np.moveaxis(values[[1, 3, 5]], 0, -1)[PART])
    first = recipe.read(volume, Tile(0, 5, 7, 20, 30))
    np.testing.assert_array_equal(first, np.moveaxis(values[[0, 0, 2]], 0, -1)[PART])
    last = recipe.read(volume, Tile(7, 5, 7, 20, 30))
    np.testing.assert_array_equal(last, np.moveaxis(values[[5, 7, 7]], 0, -1)[PART])
    assert recipe.n_planes(volume) == 8


def test_depth_ranges_become_means_with_their_ends_included(tmp_path: Path) -> None:
    values = noise(8, 40, 50, dtype="uint16")
    volume = saved(tmp_path, values)
    recipe = resolve_preprocess(volume, channels="depth:0-2,3-3,4-7", window="dtype")
    assert recipe.n_planes(volume) == 1
    found = recipe.read(volume, Tile(0, 5, 7, 20, 30))
    assert found.dtype == np.float32
    for channel, (first, last) in enumerate([(0, 2), (3, 3), (4, 7)]):
        np.testing.assert_allclose(found[..., channel], values[first : last + 1].mean(0)[PART], rtol=1e-6)


def test_repeat_reads_one_plane_as_it_is(tmp_path: Path) -> None:
    values = noise(8, 40, 50)
    volume = saved(tmp_path, values)
    np.testing.assert_array_equal(resolve_preprocess(volume).read(volume, TILE), values[3][PART])


@pytest.mark.parametrize("channels", ["repeat", "adjacent", "depth:0-0,1-1,2-2"])
def test_colour_volumes_take_no_grey_recipe(tmp_path: Path, channels: str) -> None:
    volume = saved(tmp_path, noise(4, 20, 20, 3))
    assert resolve_preprocess(volume).channels == "rgb"
    with pytest.raises(VolumeError, match="is in colour") as error:
        resolve_preprocess(volume, channels=channels)
    assert error.value.exit_code == 2
    assert "rgb" in str(error.value)


def test_grey_volumes_take_no_colour_recipe_and_depths_must_exist(tmp_path: Path) -> None:
    volume = saved(tmp_path, noise(4, 20, 20))
    with pytest.raises(VolumeError, match="is grey, and --channels rgb needs colour"):
        resolve_preprocess(volume, channels="rgb")
    with pytest.raises(VolumeError, match="planes 3-4 lie outside"):
        resolve_preprocess(volume, channels="depth:0-1,1-2,3-4")


def test_collections_have_no_neighbouring_planes(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(noise(20, 20)).save(tmp_path / f"{name}.png")
    with pytest.raises(VolumeError, match="is a collection of images"):
        resolve_preprocess(open_volume(tmp_path), channels="adjacent")


@pytest.mark.parametrize(
    "text",
    ["", "grey", "adjacent:0", "adjacent:x", "depth:1-2,3-4", "depth:2-1,3-4,5-6", "depth:1:2,3:4,5:6"],
)
def test_recipes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(VolumeError, match="expected repeat, rgb, adjacent"):
        Preprocess(text)


def test_equal_recipes_are_written_in_one_way() -> None:
    assert Preprocess(" Adjacent ") == Preprocess("adjacent:01")
    assert Preprocess("depth:01-2, 3-4,5-6").channels == "depth:1-2,3-4,5-6"
    assert Preprocess("repeat", (0, 255)) == Preprocess("repeat", (0.0, 255.0))


@settings(deadline=None)
@given(
    st.sampled_from(["repeat", "rgb", "adjacent:3", "depth:1-2,3-4,5-6"]),
    st.floats(-1e9, 1e9),
    st.floats(1e-3, 1e9),
)
def test_a_recipe_survives_json(channels: str, low: float, width: float) -> None:
    recipe = Preprocess(channels, (low, low + width))
    assert Preprocess.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_windows_are_refused(window: tuple[float, float]) -> None:
    with pytest.raises(VolumeError, match="two finite numbers"):
        Preprocess("repeat", window)


def test_an_unknown_revision_is_refused() -> None:
    with pytest.raises(VolumeError, match="revision 2"):
        Preprocess.from_dict({"channels": "repeat", "window": [0, 1], "revision": 2})


# --- windows ------------------------------------------------------------------------------------------------


def test_8_bit_pixels_keep_their_range(tmp_path: Path) -> None:
    assert resolve_preprocess(saved(tmp_path, noise(2, 20, 20) // 2)).window == (0.0, 255.0)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_types_take_the_first_and_last_percentile_of_a_sample(tmp_path: Path, dtype: str) -> None:
    values = noise(20, 300, 200, dtype=dtype)
    window = resolve_preprocess(saved(tmp_path, values)).window
    spread = np.percentile(values, 99) - np.percentile(values, 1)
    np.testing.assert_allclose(window, np.percentile(values, [1, 99]), atol=0.02 * spread)


def test_the_sample_is_the_same_every_time_and_on_every_storage(tmp_path: Path) -> None:
    import zarr

    values = noise(20, 300, 200, dtype="uint16")
    first = resolve_preprocess(saved(tmp_path, values)).window
    zarr.create_array(str(tmp_path / "v.zarr"), shape=values.shape, chunks=(7, 50, 60), dtype="uint16")[
        ...
    ] = values
    assert resolve_preprocess(saved(tmp_path, values)).window == first
    assert resolve_preprocess(open_volume(tmp_path / "v.zarr")).window == first


def test_nan_is_left_out_of_the_sample_unless_nothing_else_is_there(tmp_path: Path) -> None:
    values = noise(4, 40, 40, dtype="float32")
    values[:2] = np.nan
    window = resolve_preprocess(saved(tmp_path, values)).window
    assert np.isfinite(window).all()
    with pytest.raises(VolumeError, match="NaN or infinite"):
        resolve_preprocess(saved(tmp_path, np.full((4, 40, 40), np.nan, np.float32)))


def test_a_small_object_on_an_empty_ground_keeps_its_range(tmp_path: Path) -> None:
    values = np.zeros((1, 200, 200), np.uint16)
    values[0, :5, :5] = 900
    assert resolve_preprocess(saved(tmp_path, values)).window == (0.0, 900.0)
    with pytest.raises(VolumeError, match="one value makes no window"):
        resolve_preprocess(saved(tmp_path, np.full((1, 200, 200), 7, np.uint16)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("dtype", (0.0, 65535.0)), ("100:2000", (100.0, 2000.0)), ("-1.5:1e4", (-1.5, 10_000.0))],
)
def test_windows_can_be_given(tmp_path: Path, text: str, expected: tuple[float, float]) -> None:
    assert resolve_preprocess(saved(tmp_path, noise(2, 9, 9, dtype="uint16")), window=text).window == expected


@pytest.mark.parametrize("text", ["5", "5:5", "9:1", "p99:p1", "p0:p101", "minmax", "nan:1"])
def test_texts_that_are_no_window_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(VolumeError, match="--window"):
        resolve_preprocess(saved(tmp_path, noise(2, 9, 9, dtype="uint16")), window=text)


def test_floats_have_no_range_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no natural range"):
        resolve_preprocess(saved(tmp_path, noise(2, 9, 9, dtype="float32")), window="dtype")


# --- the device's share ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"]),
    size=st.sampled_from([(1024, 1024), (1024, 700), (300, 1024), (512, 512), (90, 2048), (37, 53)]),
    colours=st.sampled_from([1, 3]),
    window=st.sampled_from([None, (3.0, 200.0), (-40.0, 12.5), (100.0, 60_000.0)]),
)
def test_what_the_device_finishes_has_the_bits_of_the_whole_way(dtype, size, colours, window) -> None:
    pixels = noise(*size, dtype=dtype) if colours == 1 else noise(*size, 3, dtype=dtype)
    recipe = Preprocess("repeat" if colours == 1 else "rgb", *([] if window is None else [window]))
    scaled = recipe.to_scaled(pixels)
    assert scaled.dtype in (np.uint8, np.uint16, np.float32)
    assert len(scaled) == colours
    if dtype == "uint8" and (window is None or max(size) == 1024):
        assert scaled.dtype == np.uint8  # a byte a pixel is what crosses to the device
    wanted = torch.from_numpy(recipe.to_input(pixels))
    used_before = torch.full((1, 3, 1024, 1024), 7.0)
    assert torch.equal(normalise(torch.from_numpy(scaled), recipe, used_before)[0], wanted)
    both = torch.from_numpy(np.stack([scaled, scaled]))
    at_once = torch.empty(2, 3, *scaled.shape[1:])
    all_at_once(both, recipe, at_once)  # as a GPU does it
    height, width = scaled.shape[1:]
    assert torch.equal(at_once[1], wanted[:, :height, :width])
    assert not wanted[:, height:].any()
    assert not wanted[:, :, width:].any()


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    view=st.integers(0, 7),
    channels=st.sampled_from(["repeat", "adjacent:1", "depth:0-1,1-2,2-2"]),
)
def test_a_tile_is_read_in_its_view_and_then_prepared_as_any_other(size, view, channels) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume, preprocess = saved(Path(folder), noise(3, 45, 50)), Preprocess(channels)
        height, width = size
        as_it_lies = preprocess.read(volume, Tile(1, 3, 5, height, width))
        tile = Tile(1, 3, 5, height, width, view)
        found = preprocess.read(volume, tile)
    planes = np.moveaxis(np.atleast_3d(as_it_lies), -1, 0)
    assert np.array_equal(np.moveaxis(np.atleast_3d(found), -1, 0), see(planes, view))
    assert found.flags.c_contiguous or view == 0
    assert found.shape[:2] == (tile.seen.height, tile.seen.width)
    if min(tile.input_size) > 0:
        content = preprocess.to_input(found)[:, : tile.input_size[0], : tile.input_size[1]]
        assert np.isfinite(content).all()
        assert not preprocess.to_input(found)[:, tile.input_size[0] :].any()
