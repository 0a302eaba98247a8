"""Turns the pipeline without its encoder into tiles per second: the most that all the rest could do here.

``python -m embedcache.bench.ceiling FOLDER TILES DEVICE THREADS`` makes a volume of noise in 128³ chunks,
encodes it into a store beside it with an encoder that gives a constant, and prints figures as one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor, nn

from embedcache.encode import EncodeResult, overlapped, run_encode
from embedcache.encode.options import options_from
from embedcache.errors import StorageError
from embedcache.files import free_bytes
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE, PLANES_PER_BLOCK
from embedcache.heap import keep_freed_memory
from embedcache.peak import peak_memory
from embedcache.progress import Silent
from embedcache.sam import register_encoder

CONSTANT = "constant"
CHUNK = 128
BYTES_PER_TILE = 4 << 20
"""Of the volume and of the store, at most."""

RUN_FIELDS = (
    "seconds_by_stage",
    "waits",
    "bottleneck",
    "source_chunks_read",
    "source_bytes_read",
    "bytes_written",
    "tiles_failed",
)
"""What of the run's own figures is told."""


class Constant(nn.Module):
    """Gives the same embedding for every image, and takes no time for it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(EMBEDDING_SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, 1024, 1024)`` to ``(B, 256, 64, 64)``."""
        return self.embedding.expand(len(x), -1, -1, -1)


def pipeline_ceiling(
    tiles: int, *, folder: str | None = None, device: str = "auto", threads: int | None = None
) -> dict[str, Any]:
    """Measure it in a process of its own.

    Parameters
    ----------
    tiles : int
        Tiles of 1024 × 1024 pixels.
    folder : str, optional
        On which disk; by default that of temporary files.
    device : str
        ``auto`` or a torch device.
    threads : int, optional
        CPU threads of torch.

    Returns
    -------
    dict
        ``tiles_per_second`` (of the run without its preparation), ``tiles``, ``source_chunks``, and the run's own
        figures under ``run``.

    Raises
    ------
    StorageError
        When the disk is too small.
    """
    with tempfile.TemporaryDirectory(prefix="embedcache-bench-", dir=folder) as place:
        if free_bytes(Path(place)) < tiles * BYTES_PER_TILE:
            raise StorageError(
                f"{place}: {tiles} tiles need {tiles * BYTES_PER_TILE >> 20} MiB.", hint="Give fewer --tiles."
            )
        command = [
            sys.executable,
            "-m",
            "embedcache.bench.ceiling",
            place,
            str(tiles),
            device,
            str(threads or 0),
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_noise(path: Path, planes: int) -> int:
    """Write a volume of noise, (planes, 1024, 1024) uint8 in zarr chunks of 128³; returns how many chunks."""
    array = zarr.create_array(
        path, shape=(planes, IMAGE_SIZE, IMAGE_SIZE), chunks=(CHUNK,) * 3, dtype="uint8", fill_value=0
    )
    generator = np.random.default_rng(0)
    for start in range(0, planes, CHUNK):
        shape = (min(CHUNK, planes - start), IMAGE_SIZE, IMAGE_SIZE)
        # Of 4 bits, so that the codec has something to do, as with real scans
        array[start : start + CHUNK] = generator.integers(64, 80, shape, dtype=np.uint8)
    return int(np.prod([-(-side // CHUNK) for side in array.shape]))


def encode_noise(folder: Path, **wishes: object) -> tuple[EncodeResult, float]:
    """Encode ``noise.zarr`` in a folder into ``store.zarr`` beside it, with the constant encoder.

    Returns
    -------
    EncodeResult, float
        What the run says, and its tiles per second without its preparation.
    """
    recipe = {
        "model": CONSTANT,
        "checkpoint": "random:0",
        "precision": "fp32",
        "shard_tiles": PLANES_PER_BLOCK,
    }
    options = options_from(folder / "noise.zarr", {**recipe, "store": folder / "store.zarr", **wishes})
    result = run_encode(options, Silent())
    return result, result.encoded / (result.seconds - result.seconds_by_stage["prepare"])


def main() -> None:
    """Measure in this process, as the command line says."""
    keep_freed_memory()  # as the command does
    folder, tiles, device, threads = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if threads:
        torch.set_num_threads(threads)
    register_encoder(CONSTANT, Constant)
    overlapped.GOES_ON = ("cuda", "cpu")  # as beside the fast encoders that a ceiling is asked for
    chunks = write_noise(folder / "noise.zarr", tiles)
    result, pace = encode_noise(folder, device=device)
    figures = {
        "tiles_per_second": pace,
        "seconds": result.seconds - result.seconds_by_stage["prepare"],
        "tiles": result.encoded,
        "source_chunks": chunks,
        "peak_memory_bytes": peak_memory(torch.device("cpu")),
        "run": {name: value for name, value in result.to_dict().items() if name in RUN_FIELDS},
    }
    print(json.dumps(figures, default=str))


if __name__ == "__main__":
    main()
