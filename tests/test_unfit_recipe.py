"""A recipe that a volume does not fit is refused by the name of the model that it belongs to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from embedcache.encode.options import options_from
from embedcache.encode.survey import survey
from embedcache.errors import VolumeError
from embedcache.progress import Silent

DEPTH = "depth:0-0,1-1,2-2"


def test_a_volume_that_the_channels_of_a_run_do_not_fit_is_refused_by_the_runs_name(tmp_path: Path) -> None:
    recipe = {"model": "vit_tiny", "tile": 64, "channels": DEPTH}
    trained = SimpleNamespace(path=Path("runs/x/best.safetensors"), recipe=recipe)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "photos/a.png")
    np.save(tmp_path / "thin.npy", np.zeros((2, 64, 64), np.uint8))
    kinds = {
        "photo.png": "in colour",
        "photos": "a collection of images",
        "thin.npy": "grey and has 2 planes",
    }
    for name, kind in kinds.items():
        with pytest.raises(VolumeError) as caught:
            survey(options_from(tmp_path / name, {}, trained), Silent())
        assert str(caught.value) == (
            f"The recipe of {trained.path} has --channels {DEPTH}, and {tmp_path / name} is {kind}: "
            "this model cannot be used on it."
        )


def test_channels_of_ones_own_wish_are_answered_with_the_option(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(VolumeError, match="builds colours from grey planes") as caught:
        survey(options_from(tmp_path / "photo.png", {"channels": DEPTH}), Silent())
    assert "Leave --channels out" in str(caught.value.hint)
