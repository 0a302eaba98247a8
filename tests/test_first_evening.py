"""The first evening with scroll data as they lie: a fragment, bare commands, another at an address, a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from volume_servers import VolumeServer

from embedcache.cli.app import run
from embedcache.demo.fragments import write_fragment

LAYERS, HEIGHT, WIDTH = 9, 64, 256
RECIPE = ["--tile", "64", "--channels", "depth:2-3,4-4,5-6", "--window", "global_zscore"]
ENCODER = ["--model", "vit_tiny", "--checkpoint", "random:0", "--device", "cpu"]


@pytest.fixture
def evening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two fragments; of the second only an OME-less Zarr pyramid is left."""
    monkeypatch.chdir(tmp_path)
    write_fragment(tmp_path / "data" / "frag1", planes=LAYERS, side=(HEIGHT, WIDTH), seed=1)
    second = write_fragment(tmp_path / "hidden" / "frag2", planes=LAYERS, side=(HEIGHT, WIDTH), seed=2)
    layers = np.stack([tifffile.imread(path) for path in sorted((second / "surface_volume").iterdir())])
    group = zarr.open_group(tmp_path / "remote" / "frag2.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=layers.shape, dtype=layers.dtype, chunks=(4, 32, 32))[...] = layers
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_from_a_fragment_to_a_submission(evening: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "info", "data/frag1")
    assert (found["planes"], found["height"], found["width"]) == (LAYERS, HEIGHT, WIDTH)

    made = said(capsys, "encode", "--volume", "fragment:data/frag1", *RECIPE, *ENCODER)
    assert made["tiles_encoded"] == 4
    assert Path(made["store"]).name.startswith("frag1-"), "a store is called by its fragment"

    trained = said(capsys, "train", "--steps", "2", "--batch-size", "1", "--device", "cpu", "--out", "run")
    config = json.loads((evening / "run" / "config.json").read_text())
    assert config["options"]["supervision"] == str(evening / "data" / "frag1" / "mask.png"), (
        "found by its name"
    )

    with VolumeServer(evening / "remote") as server:
        address = f"{server.url}/frag2.zarr"
        here = ["--checkpoint", trained["checkpoint"], "--device", "cpu"]
        said(capsys, "predict", "--volume", address, *here, "--output", "frag2.png")
    said(capsys, "predict", "--volume", "data/frag1", *here, "--output", "frag1.csv")
    said(
        capsys, "submit", "frag1.csv", "--id", "frag2=frag2.png", "--threshold", "0.5", "--output", "all.csv"
    )

    with Path("all.csv").open(newline="") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["Id", "Predicted"]
    assert [row[0] for row in rows[1:]] == ["frag1", "frag2"]

    said(capsys, "submit", "--back", "all.csv", "--size", f"{HEIGHT}x{WIDTH}", "--output", "back")
    probability = np.asarray(Image.open("frag2.png"))
    assert np.array_equal(np.asarray(Image.open("back/frag2.png")) > 0, probability > 127)
