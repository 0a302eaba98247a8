"""Reading a volume far larger than any memory or disk here: each chunk once, within the memory that was stated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from volume_servers import VolumeServer

MEBI = 1 << 20
READ_MEMORY = 64 * MEBI
IN_FLIGHT = 16 * 2 * MEBI
REST = 96 * MEBI


class Grid:
    """An uncompressed Zarr v2 array of uint8 whose chunks are computed when they are asked for.

    Parameters
    ----------
    shape : tuple of int
        Of the array.
    chunk : int
        Side of its chunks.
    there : range, optional
        Places along y and x at which chunks exist; everywhere by default.
    """

    def __init__(self, shape: tuple[int, int, int], chunk: int, there: range | None = None) -> None:
        self.chunk, self.there = chunk, there
        self.metadata = json.dumps({
            "zarr_format": 2, "shape": shape, "chunks": [chunk] * 3, "dtype": "|u1", "order": "C",
            "compressor": None, "filters": None, "fill_value": 0, "dimension_separator": "/",
        }).encode()  # fmt: skip

    def __call__(self, name: str) -> bytes | None:
        if name == "v.zarr/.zarray":
            return self.metadata
        found = re.fullmatch(r"v\.zarr/(\d+)/(\d+)/(\d+)", name)
        if found is None:
            return None
        z, y, x = (int(place) for place in found.groups())
        if self.there is not None and (y not in self.there or x not in self.there):
            return None
        return bytes([1 + (7 * z + 3 * y + x) % 255]) * self.chunk**3


def read_as_encode_does(volume: str, memory: int, **wishes: Any) -> dict[str, Any]:
    """All of an encode but the encoder: identity, plan, and every selected tile in the planned order."""
    from embedcache.encode.options import options_from
    from embedcache.encode.prepare import prepare
    from embedcache.encode.reading import plan_reading
    from embedcache.encode.stages import Stages
    from embedcache.encode.tile_reader import ReadAhead
    from embedcache.geometry import Tile
    from embedcache.progress import Silent

    wishes = {"model": "vit_tiny", "checkpoint": "random:0", "read_memory": memory, **wishes}
    job = prepare(options_from(volume, wishes, None), Silent())
    plan = job.plan()
    reading = plan_reading(job.volume, job.preprocess, job.table, plan.missing, plan.shard_tiles)
    job.volume.expect(reading)
    tiles = ((number, Tile(*(int(value) for value in job.table[number]))) for number in reading.numbers())
    read = failed = bright = 0
    with ReadAhead(job.volume, job.preprocess, tiles, empty=job.empty, ahead=2, stages=Stages()) as ahead:
        for tile in ahead:
            read += 1
            failed += tile.failed is not None
            bright += tile.scaled is not None and bool(tile.scaled.any())
    fetched = getattr(job.volume, "fetched", None)
    job.volume.close()
    return {"tiles": read, "failed": failed, "bright": bright, "bytes": fetched.bytes if fetched else 0}


@pytest.fixture(autouse=True)
def chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    return tmp_path / "chunks"


@pytest.fixture
def hundred_thousand() -> Iterator[VolumeServer]:
    with VolumeServer(Grid((752, 752, 752), 16)) as server:
        yield server


def test_of_a_hundred_thousand_chunks_those_that_are_touched_are_fetched_once(
    hundred_thousand: VolumeServer, tmp_path: Path
) -> None:
    url = f"{hundred_thousand.url}/v.zarr"
    wishes = {"tile": 48, "z_range": "100:120", "bbox": "200:320,300:420", "store": tmp_path / "s.zarr"}
    found = read_as_encode_does(url, 1 * MEBI, **wishes)
    assert (found["tiles"], found["failed"], found["bright"]) == (20 * 9, 0, 20 * 9)
    asked = hundred_thousand.chunks_asked
    assert 700 < len(asked) < 1500
    assert set(asked.values()) == {1}
    assert found["bytes"] <= 1.05 * len(asked) * 16**3
    again = read_as_encode_does(url, 1 * MEBI, **wishes)
    assert again["tiles"] == found["tiles"]
    assert hundred_thousand.chunks_asked == asked


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_slices_of_32693_px_are_read_within_the_stated_memory(tmp_path: Path) -> None:
    with VolumeServer(Grid((256, 32_693, 32_693), 128, range(100, 108))) as server:
        done = subprocess.run(
            [sys.executable, __file__, f"{server.url}/v.zarr"], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "EMBEDCACHE_CHUNKS": str(tmp_path / "chunks")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["tiles"], found["failed"], found["bright"]) == (4, 0, 4)
        assert set(server.chunks_asked.values()) == {1}
        assert found["bytes"] <= 1.05 * server.chunk_bytes
    assert found["peak"] <= READ_MEMORY + IN_FLIGHT + REST


def _measured(url: str) -> dict[str, Any]:
    """As a process of its own: the most memory beyond that of a process that has read a small volume already."""
    import tempfile

    import numpy as np
    import torch

    from embedcache.peak import forget_peak, peak_memory

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/small.npy", np.ones((1, 1024, 1024), np.uint8))
        read_as_encode_does(f"{folder}/small.npy", READ_MEMORY, store=f"{folder}/one.zarr")
        forget_peak(torch.device("cpu"))
        before = peak_memory(torch.device("cpu"))
        wishes = {"bbox": "13000:14000,13000:14000", "z_range": "7:8", "store": f"{folder}/two.zarr"}
        found = read_as_encode_does(url, READ_MEMORY, **wishes)
    return {**found, "peak": peak_memory(torch.device("cpu")) - before}


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1])))
