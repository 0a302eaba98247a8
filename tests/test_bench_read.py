"""The bench of reading: everyone reads the same in turns, and nobody who cannot holds the others up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.bench import reads
from embedcache.bench.readers import WAYS
from embedcache.bench.reads import bench_reads
from embedcache.cli.app import run
from embedcache.errors import ConfigError, CorruptionError
from embedcache.progress import Silent

TINY = ["bench", "read", "--tiles", "6", "--batch-size", "4", "--rounds", "1"]


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "TURN_SECONDS", 0.0)


def test_every_way_reads_the_same_embeddings(tmp_path: Path) -> None:
    warm, cold = reads._write(tmp_path, 3, 2)
    wanted = torch.stack([warm.store[2], warm.store[0]]).half()
    for way in WAYS:
        place = cold if way.cold else warm
        for _ in range(2):
            place.out.zero_()
            way.build(place)([[1, 1], [2, 0]])
            assert torch.equal(place.out, wanted), way.name


def test_ours_stands_beside_memmap_and_others_with_equal_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*TINY, "--json", "--folder", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {way.name for way in WAYS}
    assert set(found["seconds"]) == set(found["ratios"]) == set(found["cpu_ratios"]) == names
    assert found["ratio"] == pytest.approx(found["seconds"]["memmap"] / found["seconds"]["ours"])
    assert found["ratios"]["ours_2"] == pytest.approx(
        found["seconds"]["memmap_2"] / found["seconds"]["ours_2"]
    )
    assert found["not_run"] == {}
    assert {"date", "processor", "cores"} <= set(found["machine"])
    assert not list(tmp_path.iterdir()), "nothing stays"


def test_the_table_names_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TINY, "--only", "ours_2"]) == 0
    printed = capsys.readouterr().out
    for label in ("memmap, 2 threads", "ours, checked on every read, 2 threads", "by processor time"):
        assert label in printed
    assert "tensorstore" not in printed


def test_what_cannot_run_is_named_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(place: Any) -> Any:
        raise ImportError("No module named 'tensorstore'\nand more")

    ways = tuple(replace(way, build=absent) if way.name == "tensorstore" else way for way in WAYS)
    monkeypatch.setattr(reads, "WAYS", ways)
    found = bench_reads(Silent(), tiles=2, batch=2, rounds=1, only=["tensorstore", "ours"])
    assert found.not_run == {"tensorstore": "No module named 'tensorstore'"}
    assert set(found.ratios()) == {"memmap", "ours"}


def test_a_fault_of_ours_is_no_figure_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: Any) -> Any:
        raise CorruptionError("broken")

    ways = tuple(replace(way, build=broken) if way.name == "ours" else way for way in WAYS)
    monkeypatch.setattr(reads, "WAYS", ways)
    with pytest.raises(CorruptionError, match="broken"):
        bench_reads(Silent(), tiles=2, batch=2, rounds=1, only=["ours"])


@pytest.mark.parametrize("wrong", [{"tiles": 0}, {"batch": 0}, {"rounds": 0}, {"only": ["mine"]}])
def test_wrong_wishes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        bench_reads(Silent(), **wrong)
