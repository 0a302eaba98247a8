"""Volumes behind addresses: the same pixels and store as of the copy on the disk, however the server behaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_zarr_volume import LAYOUTS, pixels, write_array
from volume_servers import VolumeServer

from embedcache.remote import sources
from embedcache.volume import open_volume


@pytest.fixture(autouse=True)
def chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Chunks are kept in the test's own folder, and nobody waits long."""
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", (2.0, 0.3))
    return tmp_path / "chunks"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[VolumeServer]:
    """A server of the folder ``there``, which lists nothing."""
    (tmp_path / "there").mkdir()
    with VolumeServer(tmp_path / "there") as server:
        yield server


def whole(volume: Any) -> np.ndarray:
    return np.stack([volume.read(z, slice(None), slice(None)) for z in range(volume.n_planes)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_volume_as_on_the_disk(
    tmp_path: Path, there: VolumeServer, layout: str
) -> None:
    values = pixels()
    path = write_array(tmp_path / "there" / "a.zarr", values, **LAYOUTS[layout])
    with open_volume(f"{there.url}/a.zarr/") as volume, open_volume(path) as local:
        assert volume.source == f"{there.url}/a.zarr"
        assert volume.header() == local.header()
        np.testing.assert_array_equal(whole(volume), values)
