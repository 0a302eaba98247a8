"""Small volumes and quick encodes for tests: a registered encoder of a few milliseconds a tile."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from faults.encoder import register

from embedcache.encode import EncodeResult, run_encode
from embedcache.encode.options import options_from
from embedcache.progress import Silent

register()

QUICK = {
    "model": "patches",
    "checkpoint": "random:0",
    "tile": 64,
    "precision": "fp32",
    "device": "cpu",
    "shard_tiles": 2,
}


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def quick(volume: Path, progress: Silent | None = None, stop=lambda: None, **wishes: Any) -> EncodeResult:
    """One encode with the quick encoder."""
    return run_encode(options_from(volume, QUICK | wishes), progress or Silent(), stop)


def scan(path: Path, planes: int = 6, dtype: str = "uint8", seed: int = 0, high: int = 255) -> Path:
    """A volume of noise, one tile a plane."""
    np.save(path, np.random.default_rng(seed).integers(1, high, (planes, 64, 64)).astype(dtype))
    return path


def change(path: Path, plane: int, row: int = 30, column: int = 40) -> None:
    """Change one voxel by one step."""
    pixels = np.load(path)
    pixels[plane, row, column] += 1
    np.save(path, pixels)


def shard_digests(store: Path) -> dict[str, str]:
    """Digest of every file of embeddings, scales included."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("image_embeddings", "scales")
        for path in sorted((store / folder / "c").rglob("*"))
        if path.is_file()
    }


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but for locks, which only people read."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }
