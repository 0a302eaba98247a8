"""A killed ``encode`` loses at most its open shard, and the same command ends with an undisturbed run's bytes.

``EMBEDCACHE_KILL_ROUNDS`` (default 2) sets how many kills are tried.
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

ROUNDS = int(os.environ.get("EMBEDCACHE_KILL_ROUNDS", "2"))
TILES = 8


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


@pytest.mark.fault
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_encode_resumes_to_the_same_bytes(tmp_path, signal_number):
    volume = tmp_path / "scan.npy"
    np.save(volume, np.random.default_rng(0).integers(0, 255, (TILES, 64, 64), dtype=np.uint8))
    subprocess.run(command(volume, tmp_path / "whole.zarr"), check=True, capture_output=True)
    delays = random.Random(int(signal_number))
    for attempt in range(ROUNDS):
        store = tmp_path / f"killed{attempt}.zarr"
        running = subprocess.Popen(
            command(volume, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_first_shard(store, running)
        time.sleep(delays.uniform(0.0, 1.5))
        running.send_signal(signal_number)
        code = running.wait(timeout=60)
        assert code in (0, -signal.SIGKILL, 128 + signal.SIGTERM)
        subprocess.run(command(volume, store), check=True, capture_output=True)
        assert shards(store) == shards(tmp_path / "whole.zarr")
        assert not list(store.rglob("*.partial"))


def wait_for_first_shard(store: Path, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while (
        not (store / "image_embeddings" / "c").is_dir() and time.monotonic() < end and running.poll() is None
    ):
        time.sleep(0.01)
