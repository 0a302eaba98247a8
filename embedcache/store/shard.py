"""Turns embeddings into the bytes of one shard, and a shard's index back into places.

A shard is a file of Zarr's ``sharding_indexed`` codec: the chunks of its committed tiles one after the other
in order of tile number, each 2 MiB of little-endian float16 and its CRC-32C (4 bytes, little-endian); then an
index of one ``(offset, length)`` pair of uint64 per slot, 2⁶⁴−1 twice where the shard has no such tile; then the
CRC-32C of the index. What the bytes are follows from which tiles there are, never from when they came.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError
from embedcache.files import crc32c, read_error
from embedcache.geometry import EMBEDDING_SHAPE, EMBEDDING_VALUES

PAYLOAD_BYTES = EMBEDDING_VALUES * 2
"""Bytes of one float16 embedding, without its checksum."""

CRC_BYTES = 4
CHUNK_BYTES = PAYLOAD_BYTES + CRC_BYTES
"""Bytes of one chunk in the shard."""

NOT_STORED = 2**64 - 1
"""Both numbers of an index entry whose chunk the shard does not hold."""


def index_bytes(shard_tiles: int) -> int:
    """Bytes of the index at the end of a shard, with its checksum."""
    return shard_tiles * 16 + CRC_BYTES


def shard_bytes(tiles: int, shard_tiles: int) -> int:
    """Bytes of a shard file that holds ``tiles`` tiles."""
    return tiles * CHUNK_BYTES + index_bytes(shard_tiles)


def embedding_bytes(embedding: npt.NDArray[np.float16]) -> memoryview:
    """The 2 MiB of one embedding as stored: C order, little-endian; a view where the array allows."""
    array = np.ascontiguousarray(embedding, dtype="<f2")
    return array.reshape(-1).view(np.uint8).data


def extremes(embedding: npt.NDArray[np.float16]) -> tuple[np.float16, np.float16]:
    """Smallest and largest value; infinite or NaN when, and only when, one of the values is.

    Computed on the bits, which order as integers within each sign: numpy's own reductions of float16 are 50 times
    slower than everything else that a commit does.
    """
    bits = np.frombuffer(embedding_bytes(embedding), "<i2")
    low, high, most_negative = int(bits.min()), int(bits.max()), int(bits.view("<u2").max())
    smallest = most_negative if most_negative >= 0x8000 else low
    largest = high if high >= 0 else low
    limits = np.array([smallest & 0xFFFF, largest & 0xFFFF], dtype=np.uint16).view(np.float16)
    return limits[0], limits[1]


def encode_index(slots: npt.NDArray[np.int64], shard_tiles: int) -> bytes:
    """Index of a shard that holds ``slots`` (ascending), with its checksum."""
    index = np.full((shard_tiles, 2), NOT_STORED, dtype="<u8")
    index[slots, 0] = np.arange(len(slots), dtype=np.uint64) * np.uint64(CHUNK_BYTES)
    index[slots, 1] = CHUNK_BYTES
    data = index.tobytes()
    return data + crc32c(data).to_bytes(CRC_BYTES, "little")


class ShardFile:
    """A shard opened for reading: its index is parsed once, its chunks are read in place.

    Reads use ``pread``, so threads share one object; the file is closed with the last reference to it.

    Parameters
    ----------
    path : Path
        The shard file.
    shard_tiles : int
        Slots of a shard.

    Raises
    ------
    CorruptionError
        When the file is missing, too short, or its index differs from the index's checksum.
    StorageError
        When it is there but the system refuses to read it.
    """

    def __init__(self, path: Path, shard_tiles: int) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise CorruptionError(f"the shard file {path} is missing") from error
        except OSError as error:
            raise self._unreadable(error) from error
        self.size = os.fstat(self._descriptor).st_size
        length = index_bytes(shard_tiles)
        data = self._pread(length, self.size - length) if self.size >= length else b""
        if len(data) != length:
            raise CorruptionError(f"the shard file {path} is cut short ({self.size} bytes)")
        if crc32c(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
            raise CorruptionError(f"the index of the shard file {path} differs from its checksum")
        self._index = np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(shard_tiles, 2)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> EmbedcacheError:
        """What stands there is no file: corruption. Denied, too many open files, a failing disk: none of it is."""
        if isinstance(error, IsADirectoryError | NotADirectoryError):
            return CorruptionError(f"the shard file {self.path} is no file: {error.strerror}")
        return read_error(error, self.path)

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """Slots that the index says are stored."""
        return np.flatnonzero(self._index[:, 0] != NOT_STORED)

    def read_into(self, slot: int, out: memoryview) -> int:
        """Read one chunk's 2 MiB into ``out`` and return their CRC-32C.

        Raises
        ------
        CorruptionError
            When the chunk is not there, cut short, or differs from the checksum behind it.
        """
        offset, length = (int(value) for value in self._index[slot])
        if offset == NOT_STORED or length != CHUNK_BYTES:
            raise CorruptionError(f"slot {slot} of the shard file {self.path} holds no embedding")
        if offset + CHUNK_BYTES > self.size:
            raise CorruptionError(f"slot {slot} of the shard file {self.path} is cut short")
        stored = bytearray(CRC_BYTES)
        try:
            count = os.preadv(self._descriptor, [out, stored], offset)
        except OSError as error:
            raise self._unreadable(error) from error
        if count != CHUNK_BYTES:
            raise CorruptionError(f"slot {slot} of the shard file {self.path} is cut short")
        found = crc32c(out)
        if found.to_bytes(CRC_BYTES, "little") != stored:
            raise CorruptionError(f"slot {slot} of the shard file {self.path} differs from its checksum")
        return found

    def read(self, slot: int) -> tuple[npt.NDArray[np.float16], int]:
        """Read one embedding, shape (256, 64, 64), and its CRC-32C."""
        out = np.empty(EMBEDDING_SHAPE, dtype="<f2")
        found = self.read_into(slot, out.reshape(-1).view(np.uint8).data)
        return out, found

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()
