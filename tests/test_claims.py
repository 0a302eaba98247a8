"""What a store claims takes no memory before something else in the store makes it believable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_samples import commit, make_store, spec

from embedcache.encode.care.repair import repair
from embedcache.errors import CorruptionError
from embedcache.store import EmbeddingStore
from embedcache.store.care.verify import verify
from embedcache.store.care.verify_files import expected_table
from embedcache.store.journal.lines import encode_line


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the records of a journal file, and give each its right checksum again."""
    lines = []
    for line in path.read_text().splitlines():
        record = {name: value for name, value in json.loads(line).items() if name != "crc32c"}
        change(record)
        lines.append(encode_line(record) + "\n")
    path.write_text("".join(lines))


def test_a_first_journal_file_that_is_cut_short_is_corruption(tmp_path: Path):
    """It is replaced as a whole, so that a torn line in it is no killed writer's."""
    make_store(tmp_path / "s.zarr")
    path = tmp_path / "s.zarr" / "journal" / "created.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorruptionError, match="cut short"):
        EmbeddingStore.open(tmp_path / "s.zarr")
    assert verify(tmp_path / "s.zarr").problems


def test_repair_does_not_make_a_table_of_two_billion_rows(tmp_path: Path):
    store = make_store(tmp_path / "s.zarr")
    commit(store, 0)

    def claim(record: dict[str, Any]) -> None:
        if record["kind"] == "table":
            record["tiles"] = 2**31 - 1

    rewrite(store.path / "journal" / "created.jsonl", claim)
    result = repair(store.path)
    assert result.exit_code == 4
    assert any("2,147,483,647" in line for line in result.unmended)


@pytest.mark.parametrize(
    "shape", [[2**40, 64, 64], [64, 2**60, 2**60], [-1, 64, 64], [0, 64, 64], "large", [1, 2]]
)
def test_a_recipe_that_claims_another_volume_gives_no_table(shape: Any):
    claimed = spec(volume={"kind": "npy", "shape": shape, "dtype": "uint8"})
    assert expected_table(claimed, [], 64) is None
