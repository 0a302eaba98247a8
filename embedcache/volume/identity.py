"""Turns a volume into what a store remembers of it: header and pixel digests at fixed places, no path."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.geometry import Tile
from embedcache.volume.preprocess import Preprocess
from embedcache.volume.tiles import TileGrid
from embedcache.volume.volume import Volume

IDENTITY_TILES = 64
"""Tiles whose pixels are digested."""

IDENTITY_SIDE = 128
"""Side of the piece in a tile's middle that is digested where whole tiles would cost too much reading."""

WHOLE_TILES_BYTES = 128 << 20
"""Whole tiles are digested as long as no more than this must be decoded for them."""


def pixel_digest(pixels: npt.NDArray[Any]) -> str:
    """SHA-256, 64 hex digits, over data type, shape and bytes (little-endian, row by row)."""
    values = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{pixels.dtype.name}{list(pixels.shape)}".encode("ascii"))
    digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def volume_identity(volume: Volume, grid: TileGrid, preprocess: Preprocess) -> dict[str, Any]:
    """What tells a volume from another one, without reading all of it.

    Returns
    -------
    dict
        For an array: its header and the digest of the pixels of up to 64 tiles, evenly over the grid's numbers.
        For a collection: kind, dtype and channels; its images are told apart one by one in the store's table.
    """
    if not volume.uniform:
        return {"kind": "images", "dtype": volume.dtype.name, "channels": volume.channels}
    table = grid.table_uniform(preprocess.n_planes(volume), *volume.plane_size(0))
    tiles = [Tile(*(int(value) for value in table[number])) for number in identity_tiles(table)]
    if _bytes_to_read(volume, tiles, preprocess) > WHOLE_TILES_BYTES:
        tiles = [_middle(tile) for tile in tiles]
    digest = hashlib.sha256()
    for tile in tiles:
        digest.update(pixel_digest(preprocess.read(volume, tile)).encode("ascii"))
    return {**volume.header(), "pixels": f"sha256:{digest.hexdigest()}"}


def identity_tiles(table: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of the tiles whose pixels are digested: up to 64, evenly over the numbers that have a tile."""
    numbers = np.flatnonzero(table[:, 0] >= 0)
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, IDENTITY_TILES).round().astype(np.int64))]


def _bytes_to_read(volume: Volume, tiles: list[Tile], preprocess: Preprocess) -> int:
    """Upper bound of the bytes decoded for the tiles: whole chunks, but no more than the volume."""
    height, width = volume.plane_size(0)
    pixel = volume.dtype.itemsize * volume.channels
    depth, chunk_height, chunk_width = volume.chunks or (1, 1, 1)
    planes = sum(last - first + 1 for first, last in preprocess.depth_ranges) or depth
    if preprocess.channels.startswith("random:"):
        planes = 3 * depth  # three planes that seldom share a chunk
    total = 0
    for tile in tiles:
        rows = min(-(-tile.height // chunk_height) + 1, -(-height // chunk_height)) * chunk_height
        columns = min(-(-tile.width // chunk_width) + 1, -(-width // chunk_width)) * chunk_width
        total += planes * rows * columns * pixel
    return min(total, volume.n_planes * height * width * pixel)


def _middle(tile: Tile) -> Tile:
    """A piece near the tile's middle, on multiples of 128 where it can be, so that it does not straddle chunks."""
    y0, height = _middle_part(tile.y0, tile.height)
    x0, width = _middle_part(tile.x0, tile.width)
    return Tile(tile.plane, y0, x0, height, width)


def _middle_part(start: int, length: int) -> tuple[int, int]:
    part = min(length, IDENTITY_SIDE)
    middle = start + (length - part) // 2
    aligned = middle // IDENTITY_SIDE * IDENTITY_SIDE
    return (aligned if aligned >= start else middle), part
