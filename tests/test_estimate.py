"""A plan tries the run's own pieces: on thin volumes, half-done stores, disks that refuse; and leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from encode_samples import QUICK, Listener, quick

from embedcache.cli.app import run
from embedcache.encode.estimate import Estimate, estimate
from embedcache.encode.options import options_from


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Four planes of noise, 64 × 128: two tiles of 64 px each, so that most numbers of a block have no tile."""
    path = tmp_path / "scan.npy"
    np.save(path, np.random.default_rng(0).integers(1, 255, (4, 64, 128), dtype=np.uint8))
    return path


def planned(volume: Path, listener: Listener | None = None, **wishes: object) -> Estimate:
    wishes = {"cache_dir": volume.parent / "cache", **wishes}
    return estimate(options_from(volume, QUICK | wishes), listener or Listener())


def test_a_store_that_is_half_done_needs_the_rest_and_one_that_is_done_only_a_look(volume):
    whole = planned(volume)
    assert whole.tiles_missing == whole.tiles_total == 8
    quick(volume, cache_dir=volume.parent / "cache", z_range="0:1")
    rest = planned(volume)
    assert (rest.tiles_missing, rest.store) == (6, whole.store)
    quick(volume, cache_dir=volume.parent / "cache")
    done = planned(volume)
    assert (done.tiles_missing, done.seconds_per_tile, done.bottleneck) == (0, None, None)
    assert done.seconds_estimated == done.seconds_start > 0
    assert [path.name for path in (volume.parent / "cache").iterdir()] == [Path(str(whole.store)).name]


def test_a_part_without_a_shard_takes_no_longer_than_looking(volume):
    parts = [planned(volume, shard_tiles=512, num_parts=2, part_id=part) for part in (0, 1)]
    assert sorted(part.tiles_of_part for part in parts) == [0, 8]
    assert sorted(part.seconds_per_tile is None for part in parts) == [False, True]


def test_what_is_empty_or_equal_is_not_reckoned_as_encoded(tmp_path):
    pixels = np.zeros((6, 64, 64), dtype=np.uint8)
    pixels[0] += 7
    np.save(tmp_path / "scan.npy", pixels)
    assert planned(tmp_path / "scan.npy").share_encoded == pytest.approx(2 / 6, abs=0.1), "7 and 0, of six"
    assert planned(tmp_path / "scan.npy", skip_empty=True).share_encoded == pytest.approx(1 / 6, abs=0.1)
    np.save(tmp_path / "air.npy", np.zeros((6, 64, 64), dtype=np.uint8))
    air = planned(tmp_path / "air.npy", skip_empty=True)
    assert air.seconds_estimated is None
    assert "empty" in str(air.unknown)


def test_a_disk_that_cannot_be_written_is_said_and_another_one_timed(volume, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    listener = Listener()
    figures = planned(volume, listener, cache_dir="/proc/stores")
    assert figures.write_bytes_per_second > 0
    assert any("cannot be written; another disk was timed" in line for line in listener.lines)
    assert not list((tmp_path / "temporary").iterdir())


def test_workers_of_a_scheduler_are_not_timed_from_here(volume):
    figures = planned(volume, scheduler="tcp://127.0.0.1:1")
    assert figures.seconds_estimated is None
    assert "scheduler" in str(figures.unknown)
    assert figures.bytes > 0


def test_the_command_tells_stage_chunks_and_numerics(volume, capsys):
    words = [
        "plan",
        "--volume",
        str(volume),
        "--cache-dir",
        str(volume.parent / "cache"),
        "--model",
        "patches",
    ]
    words += ["--checkpoint", "random:0", "--tile", "64", "--device", "cpu", "--precision", "fp32"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds_estimated"] == pytest.approx(found["seconds_start"] + 8 * found["seconds_per_tile"])
    assert found["bottleneck"] in ("read", "preprocess", "encode", "write")
    assert found["numerics"]["attention"] == "own"
    assert set(found["seconds_by_stage"]) == {"read", "preprocess", "encode", "write"}
    assert found["source_chunks_read"] == found["source_chunks"] == 0, "an .npy is mapped"
    assert run(words) == 0
    said = capsys.readouterr()
    assert "limited by" in said.out
    assert "nothing is decoded" in said.err


def test_a_run_tells_machines_its_progress_where_its_result_is_json(volume, capsys):
    words = [
        "encode",
        "--volume",
        str(volume),
        "--store",
        str(volume.parent / "s.zarr"),
        "--model",
        "patches",
    ]
    words += ["--checkpoint", "random:0", "--tile", "64", "--device", "cpu", "--precision", "fp32", "--json"]
    assert run(words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["tiles_encoded"] == 8
    events = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
    (last,) = [event for event in events if event["event"] == "finish" and "encoding" in event["what"]]
    assert (last["tiles_done"], last["tiles_total"]) == (8, 8)
    assert last["tiles_per_second"] > 0
