"""A normalisation by name is one window for the whole volume; what would give each tile its own is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import VolumeError
from embedcache.volume import open_volume, resolve_preprocess
from embedcache.volume.normalisation import NAMES, Statistics, inside_mask, is_named, window_of
from embedcache.volume.window import canonical_window, is_sampled

FIGURES = Statistics(1000, 3, 100.0, 20.0, 0.0, 255.0, 4.0, 7.0, 190.0, 200.0)


def saved(folder: Path, values: np.ndarray):
    np.save(folder / "v.npy", values)
    return open_volume(folder / "v.npy")


@pytest.mark.parametrize(
    ("name", "window"),
    [("global_zscore", (40.0, 160.0)), ("percentile_minmax", (7.0, 190.0)), ("ct", (4.0, 200.0))],
)
@pytest.mark.parametrize("ending", ["", ":mask"])
def test_each_name_takes_its_figures(name, ending, window):
    assert window_of(name + ending, FIGURES) == window


def test_where_nearly_all_is_one_value_the_whole_range_still_tells_the_rest_apart():
    flat = Statistics(1000, 0, 0.1, 3.0, 0.0, 90.0, 0.0, 0.0, 0.0, 0.0)
    assert window_of("percentile_minmax", flat) == (0.0, 90.0)
    assert window_of("ct", flat) == (0.0, 90.0)


@pytest.mark.parametrize("name", NAMES[1:])
def test_one_value_makes_no_window(name, tmp_path):
    volume = saved(tmp_path, np.full((2, 20, 20), 7, np.uint16))
    with pytest.raises(VolumeError, match=r"all 800 pixels are 7; one value makes no window.*\n.*MIN:MAX"):
        resolve_preprocess(volume, window=name)


def test_figures_survive_a_file():
    assert Statistics.from_dict(json.loads(json.dumps(FIGURES.to_dict()))) == FIGURES


@pytest.mark.parametrize(
    ("window", "sampled"),
    [
        ("p1:p99", True),
        ("p0.5:p99.5", True),
        ("percentile_minmax", True),
        ("global_zscore:mask", True),
        ("ct", True),
        ("dtype", False),
        ("none", False),
        ("0:255", False),
        ("none:mask", False),
    ],
)
def test_which_windows_are_found_from_the_pixels(window, sampled):
    """``percentile_minmax`` and ``p1:p99`` both begin with p, and only one of them is a name."""
    assert is_sampled(window) is sampled
    assert is_named(window) is (sampled and not window.startswith("p0") and not window.startswith("p1"))
    assert inside_mask(window) is window.endswith(":mask")


def test_none_is_the_range_of_the_data_type_under_one_word(tmp_path):
    volume = saved(tmp_path, np.arange(800, dtype=np.uint16).reshape(2, 20, 20))
    assert canonical_window(" None ", volume) == canonical_window("dtype", volume) == "dtype"
    assert resolve_preprocess(volume, window="none") == resolve_preprocess(volume, window="dtype")
    assert resolve_preprocess(volume, window="none").window == (0.0, 65535.0)


@pytest.mark.parametrize("name", ["global_zscore", "percentile_minmax", "ct"])
def test_a_name_resolves_to_what_numpy_says_of_all_pixels(name, tmp_path):
    values = np.random.default_rng(1).normal(3000, 400, (3, 150, 170)).astype(np.uint16)
    wide = values.astype(float)
    expected = {
        "global_zscore": (wide.mean() - 3 * wide.std(), wide.mean() + 3 * wide.std()),
        "percentile_minmax": tuple(np.percentile(wide, [1, 99])),
        "ct": tuple(np.percentile(wide, [0.5, 99.5])),
    }[name]
    found = resolve_preprocess(saved(tmp_path, values), window=name.upper())
    np.testing.assert_allclose(found.window, expected, rtol=1e-12)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "nearest", "what"),
    [
        ("instance_zscore", "global_zscore", "mean and deviation"),
        ("instance_minmax", "percentile_minmax", "minimum and maximum"),
    ],
)
def test_a_normalisation_of_each_tile_is_refused_with_the_reason_and_the_nearest_fixed_one(
    asked, nearest, what, tmp_path
):
    values = np.random.default_rng(0).integers(1000, 2000, (2, 128, 128)).astype(np.uint16)
    volume = saved(tmp_path, values)
    with pytest.raises(VolumeError) as refusal:
        resolve_preprocess(volume, window=asked)
    assert refusal.value.exit_code == 2
    text = str(refusal.value)
    assert f"--window {asked}: {what} of each tile would differ from its neighbour's" in text
    assert "both sides of a seam" in text
    # all crops of the sample together are the whole of this volume, so that the edges are those of all pixels
    low, high = resolve_preprocess(volume, window=nearest).window
    said = text.split("of a sample of this volume ")[1].split(")")[0].split(":")
    np.testing.assert_allclose([float(edge) for edge in said], (low, high), rtol=0.01)
    assert f"--window {nearest} (of" in text


def test_the_refusal_needs_no_sample(tmp_path):
    with pytest.raises(VolumeError, match=r"fixed: --window global_zscore\.$"):
        resolve_preprocess(saved(tmp_path, np.zeros((2, 9, 9), np.uint8)), window="instance_zscore")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("zscore", "global_zscore"),
        ("minmax", "percentile_minmax"),
        ("percentile", "percentile_minmax"),
        ("global-zscore", "global_zscore"),
        ("zscore:mask", "global_zscore:mask"),
        ("dtpye", "dtype"),
    ],
)
def test_words_of_other_tools_are_answered_with_the_name_here(asked, meant, tmp_path):
    volume = saved(tmp_path, np.arange(81, dtype=np.uint8).reshape(1, 9, 9))
    with pytest.raises(VolumeError) as refusal:
        resolve_preprocess(volume, window=asked)
    assert refusal.value.message == (
        f"--window {asked}: expected dtype, MIN:MAX, p1:p99, none, global_zscore, percentile_minmax or ct; "
        f"did you mean {meant}?"
    )


def test_what_is_like_no_name_gets_no_guess(tmp_path):
    volume = saved(tmp_path, np.arange(81, dtype=np.uint8).reshape(1, 9, 9))
    with pytest.raises(VolumeError, match=r"percentile_minmax or ct\.\n"):
        resolve_preprocess(volume, window="bright")


def test_figures_inside_a_mask_need_a_mask(tmp_path):
    volume = saved(tmp_path, np.arange(81, dtype=np.uint8).reshape(1, 9, 9))
    with pytest.raises(
        VolumeError, match="--window ct:mask takes its statistics inside --mask, which was not given"
    ):
        resolve_preprocess(volume, window="ct:mask")
