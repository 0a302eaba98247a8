"""Fixtures that several test files share: where the real data is, small volumes on disk, one encoded store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; the test is skipped where it is absent."""
    folder = Path(os.environ.get("EMBEDCACHE_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder} (set $EMBEDCACHE_TEST_DATA)")
    return folder


@pytest.fixture
def small_volume(tmp_path: Path) -> Path:
    """A (6, 64, 96) uint8 volume as .npy: a bright disc that moves from plane to plane on noise."""
    path = tmp_path / "small.npy"
    np.save(path, moving_disc(6, 64, 96))
    return path


def moving_disc(planes: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Noise with a bright disc."""
    rng = np.random.default_rng(seed)
    volume = rng.integers(0, 90, (planes, height, width), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    for plane in range(planes):
        disc = (y - height / 2) ** 2 + (x - width / 3 - 2 * plane) ** 2 < (height / 5) ** 2
        volume[plane][disc] += 120
    return volume
