"""Real data in the size that tests bear."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import embedcache as ec


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """Six sections of the ISBI stack with their membrane labels, cropped to 256 × 256."""
    folder = tmp_path_factory.mktemp("isbi")
    for kind in ("image", "label"):
        (folder / kind).mkdir()
        for number in range(6):
            with Image.open(real_data / "isbi" / kind / f"{number:02}.png") as section:
                section.crop((0, 0, 256, 256)).save(folder / kind / f"{number:02}.png")
    return folder


@pytest.fixture
def untrained_at_logit_zero(tmp_path: Path) -> Callable[[Path, Path, Path], float]:
    """Dice of the untrained decoder as SAM cuts its masks: of a checkpoint away from its run."""

    def dice(store: Path, labels: Path, checkpoint: Path) -> float:
        alone = shutil.copy(checkpoint, tmp_path / "alone.safetensors")
        return ec.evaluate(store, labels, checkpoint=alone).baseline.dice

    return dice
