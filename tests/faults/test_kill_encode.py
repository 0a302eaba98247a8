"""A killed ``encode`` loses at most its open shard, and the same command ends with an undisturbed run's bytes.

``EMBEDCACHE_KILL_ROUNDS`` (default 1) sets how many kills of each kind are tried.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROUNDS = int(os.environ.get("EMBEDCACHE_KILL_ROUNDS", "1"))
TILES = 6


def command(volume: Path, store: Path) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "embedcache",
            "encode",
            "--volume",
            str(volume),
            "--store",
            str(store),
            "--json",
        ),
        *(
            "--model",
            "vit_tiny",
            "--tile",
            "64",
            "--shard-tiles",
            "2",
            "--precision",
            "fp32",
            "--device",
            "cpu",
        ),
    ]


def shards(store: Path) -> dict[str, str]:
    root = store / "image_embeddings" / "c"
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A volume, and the shards of an encode that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    volume = folder / "scan.npy"
    np.save(volume, np.random.default_rng(0).integers(0, 255, (TILES, 64, 64), dtype=np.uint8))
    subprocess.run(command(volume, folder / "whole.zarr"), check=True, capture_output=True)
    return volume, shards(folder / "whole.zarr")


@pytest.mark.fault
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("attempt", range(ROUNDS))
def test_a_killed_encode_resumes_to_the_same_bytes(undisturbed, tmp_path, signal_number, attempt):
    volume, expected = undisturbed
    store = tmp_path / "killed.zarr"
    running = subprocess.Popen(command(volume, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_first_shard(store, running)
    time.sleep(random.Random(attempt).uniform(0.0, 1.0))
    running.send_signal(signal_number)
    code = running.wait(timeout=60)
    assert code in (0, -signal.SIGKILL, 128 + signal.SIGTERM)  # 0: it was quicker than the signal
    subprocess.run(command(volume, store), check=True, capture_output=True)
    assert shards(store) == expected
    assert not list(store.rglob("*.partial"))


def wait_for_first_shard(store: Path, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while (
        not (store / "image_embeddings" / "c").is_dir() and time.monotonic() < end and running.poll() is None
    ):
        time.sleep(0.01)
