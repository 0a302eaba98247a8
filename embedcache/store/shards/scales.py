"""Turns the scales of one int8 shard into a file and back: one row of 256 float32 per slot.

The file is a chunk of the Zarr array ``scales``: ``shard_tiles`` rows, NaN where nothing is committed, then the
CRC-32C of all of it. A row belongs to an embedding when its own CRC-32C is the recorded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError
from embedcache.files import crc32c, read_error, read_inside
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.store import layout

CHANNELS = EMBEDDING_SHAPE[0]
ROW_BYTES = CHANNELS * 4
_CRC_BYTES = 4


@dataclass(frozen=True, eq=False)
class ShardScales:
    """The scales of one shard, as its file has them.

    Parameters
    ----------
    rows : ndarray of float32, shape (shard_tiles, 256)
    intact : bool
        Whether the file's own checksum is right.
    """

    rows: npt.NDArray[np.float32]
    intact: bool

    def crc(self, slot: int) -> int:
        """CRC-32C of a slot's row."""
        return row_crc(self.rows[slot])


def row_crc(row: npt.NDArray[np.float32]) -> int:
    """CRC-32C of the 1,024 bytes of a row as stored."""
    return crc32c(row.astype("<f4", copy=False).tobytes())


def scales_bytes(rows: Mapping[int, npt.NDArray[np.float32]], shard_tiles: int) -> bytes:
    """The file of a shard that has these rows, by slot."""
    table = np.full((shard_tiles, CHANNELS), np.nan, dtype="<f4")
    for slot, row in rows.items():
        table[slot] = row
    data = table.tobytes()
    return data + crc32c(data).to_bytes(_CRC_BYTES, "little")


def read_scales(root: Path, shard: int, shard_tiles: int) -> ShardScales:
    """Read the scales of a shard.

    Raises
    ------
    CorruptionError
        When the file is missing, a link, no regular file, or of another size.
    StorageError
        When it is there but the system refuses to read it.
    """
    path = layout.scales_path(root, shard)
    expected = shard_tiles * ROW_BYTES + _CRC_BYTES
    try:
        data = read_inside(root, path, expected)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptionError(f"the scales {path} are missing") from error
    except OSError as error:
        raise read_error(error, path) from error
    if len(data) != expected:
        raise CorruptionError(f"the scales {path} are cut short ({len(data)} bytes)")
    body = data[:-_CRC_BYTES]
    intact = crc32c(body).to_bytes(_CRC_BYTES, "little") == data[-_CRC_BYTES:]
    return ShardScales(np.frombuffer(bytearray(body), "<f4").reshape(shard_tiles, CHANNELS), intact)
