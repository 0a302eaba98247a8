"""What a store with views says of its table: damage is named, whatever became of a key, and can be mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training_stores import blob_labels, make_store
from view_samples import give_views

from embedcache.cli.app import run as command

LABELS = blob_labels(2, 32, 32)
GONE = object()


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewed") / "s.zarr"
    return give_views(make_store(path, LABELS, tile=32), LABELS).path


@pytest.mark.parametrize("shape", [GONE, None, 3, [], ["a", "b"], [64, 7], [-1, 6], [64, 6, 1]])
@pytest.mark.parametrize("consolidated", [False, True])
def test_a_table_whose_shape_is_none_is_named_and_mended(
    viewed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: Any, consolidated: bool
) -> None:
    store = Path(shutil.copytree(viewed, tmp_path / "s.zarr"))
    file = store / "zarr.json" if consolidated else store / "tiles" / "zarr.json"
    metadata = json.loads(file.read_text())
    table = metadata["consolidated_metadata"]["metadata"]["tiles"] if consolidated else metadata
    table.pop("shape") if shape is GONE else table.update(shape=shape)
    file.write_text(json.dumps(metadata))
    assert command(["verify", str(store)]) == 4
    assert str(file.relative_to(store)) in "".join(capsys.readouterr())
    assert command(["repair", str(store)]) == 0
    assert command(["verify", str(store)]) == 0
