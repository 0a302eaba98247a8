from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from embedcache.demo.infrared import make_fragment, write_fragments
from embedcache.demo.phantom import make_scroll, write_scroll
from embedcache.volume import open_volume


def test_equal_seeds_give_equal_scrolls_and_others_do_not() -> None:
    first, again, other = (make_scroll(planes=3, side=64, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.volume, again.volume)
    np.testing.assert_array_equal(first.ink, again.ink)
    assert (first.volume != other.volume).any()


def test_ink_lies_on_the_sheet_and_is_denser() -> None:
    scroll = make_scroll(planes=8, side=128)
    assert not (scroll.ink & ~scroll.sheet).any()
    assert 0.003 < scroll.ink.mean() < 0.1
    assert scroll.ink.any(axis=(1, 2)).all()
    means = [scroll.volume[part].mean() for part in (~scroll.sheet, scroll.sheet & ~scroll.ink, scroll.ink)]
    assert means[0] + 30 < means[1] < means[2] - 30


def test_the_written_scroll_is_read_back_as_made(tmp_path: Path) -> None:
    paths = write_scroll(tmp_path, planes=6, side=64, seed=2)
    made = make_scroll(planes=6, side=64, seed=2)
    for name, wanted in (("volume", made.volume), ("ink", made.ink * 255), ("sheet", made.sheet * 255)):
        with open_volume(paths[name]) as volume:
            assert (volume.n_planes, volume.plane_size(0)) == (6, (64, 64))
            np.testing.assert_array_equal(volume.read(4, slice(0, 64), slice(0, 64)), wanted[4])
    with open_volume(paths["volume"], level=1) as half:
        assert (half.n_planes, half.plane_size(0)) == (3, (32, 32))


def test_the_layout_is_that_of_public_scroll_volumes(tmp_path: Path) -> None:
    path = write_scroll(tmp_path, planes=6, side=64)["volume"]
    group = zarr.open_group(str(path), mode="r")
    assert group.metadata.zarr_format == 2
    assert group.attrs["multiscales"][0]["version"] == "0.4"
    assert (path / "0" / "0" / "0" / "0").is_file()


def test_a_scroll_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = write_scroll(tmp_path, planes=4, side=64)["volume"]
    before = (path / ".zattrs").stat().st_mtime_ns
    write_scroll(tmp_path, planes=4, side=64)
    assert (path / ".zattrs").stat().st_mtime_ns == before
    write_scroll(tmp_path, planes=4, side=64, seed=1)
    assert (path / ".zattrs").stat().st_mtime_ns != before


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_photograph_has_dark_ink_on_bright_parchment(seed: int) -> None:
    part = make_fragment(200, 260, seed=seed)
    assert part.image.shape == (200, 260, 3)
    assert (part.image[..., 0] == part.image[..., 2]).all()
    assert not (part.ink & ~part.parchment).any()
    grey = part.image[..., 0].astype(float)
    assert grey[part.ink].mean() + 30 < grey[part.parchment & ~part.ink].mean()
    assert grey[~part.parchment].mean() < 70


def test_photographs_come_in_sizes_of_their_own(tmp_path: Path) -> None:
    paths = write_fragments(tmp_path, sizes=((120, 90), (80, 130)))
    with open_volume(paths["volume"]) as images, open_volume(paths["ink"]) as masks:
        assert not images.uniform
        assert [images.plane_size(i) for i in range(2)] == [(120, 90), (80, 130)]
        assert [masks.plane_name(i) for i in range(2)] == [images.plane_name(i) for i in range(2)]
