"""Labels as they come: PNG files of 160 megapixels with grey edges, in bounded memory, decoded once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_stores import make_store

from embedcache.progress import Silent
from embedcache.train.options import TrainOptions
from embedcache.train.setup import prepare
from embedcache.volume import TileGrid

HEIGHT, WIDTH = 10_000, 16_000
MEASURE = """
import re, sys
from pathlib import Path
from embedcache.volume import open_volume

def of(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+)", status)[1]) << 10

volume = open_volume(sys.argv[1], read_memory=512 << 20)
before = of("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
crop = volume.read(0, slice(9_000, 9_500), slice(15_000, 15_500))
print(of("VmHWM") - before, int(crop.sum()), volume.reads.chunks)
"""


def grey_edges() -> np.ndarray:
    """500 × 800 px: blots whose edges take all 256 values."""
    y, x = np.mgrid[:500, :800]
    distance = np.hypot(y - 250, x - 400)
    return np.clip(255 - (distance - 100) * 4, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pattern = grey_edges()
    assert len(np.unique(pattern)) == 256
    folder = tmp_path_factory.mktemp("big")
    image = Image.fromarray(np.tile(pattern, (HEIGHT // 500, WIDTH // 800)))
    image.save(folder / "inklabels.png", compress_level=1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1000:9000, 1000:15000] = 255
    Image.fromarray(mask).save(folder / "mask.png", compress_level=1)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_png_of_160_megapixels_takes_little_more_than_twice_its_pixels_and_warns_of_nothing(
    big: Path,
) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, str(big / "inklabels.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "Warning" not in found.stderr
    peak, total, decodes = (int(word) for word in found.stdout.split())
    assert total == int(np.tile(grey_edges(), (1, 2))[:, 600:1100].sum())
    assert decodes == 1
    assert peak <= 2.2 * HEIGHT * WIDTH


def test_a_whole_set_up_of_a_training_decodes_each_file_of_labels_once(big: Path, tmp_path: Path) -> None:
    shape = np.broadcast_to(np.uint8(0), (1, HEIGHT, WIDTH))
    numbers = np.flatnonzero(TileGrid(1024, 0).table_uniform(1, HEIGHT, WIDTH)[:, 0] >= 0)
    store = make_store(tmp_path / "s.zarr", shape, tile=1024, wanted=numbers[50:53])
    options = TrainOptions(supervision=big / "mask.png", allow_partial=True, steps=1)
    setup = prepare(store, big / "inklabels.png", options, Silent())
    (labels,) = setup.labels
    assert len(setup.val) == 1
    opened = (labels._aligned.volume, labels._supervision.volume)  # type: ignore[union-attr]
    assert [volume.reads.chunks for volume in opened] == [1, 1]
    assert all(volume.cache.limit_bytes <= 512 << 20 for volume in opened)
    assert "in all): above 127 are" in labels.alignment
