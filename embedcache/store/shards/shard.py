"""Turns embeddings into the bytes of one shard, and a shard file back into embeddings.

A shard is a file of Zarr's ``sharding_indexed`` codec: the chunks of its committed tiles one after the other in
order of tile number, each the bytes of one embedding and their CRC-32C (4 bytes, little-endian); then an index of
one ``(offset, length)`` pair of uint64 per slot, 2⁶⁴−1 twice where the shard has no such tile; then the CRC-32C of
the index. Identical tiles share one chunk: their pairs are equal. What the bytes are follows from which tiles
there are, never from when they came.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError, InputError
from embedcache.files import crc32c, open_inside, read_error
from embedcache.geometry import EMBEDDING_VALUES
from embedcache.store import layout
from embedcache.store.shards.quantise import Quantised

CRC_BYTES = 4

NOT_STORED = 2**64 - 1
"""Both numbers of an index entry whose chunk the shard does not hold."""


Stored = npt.NDArray[np.float16] | Quantised
"""One embedding in the form in which a store keeps it."""

_PIECE = 1 << 20

_CHECKED_PIECE = 256 << 10
"""Bytes that are checked at once: while they are still in the processor's own cache."""


@dataclass(frozen=True)
class Form:
    """The form in which the embeddings of a store stand in its shards.

    Parameters
    ----------
    dtype : str
        "float16" or "int8".
    payload_bytes : int
        Bytes of one embedding, without its checksum.
    """

    dtype: str
    payload_bytes: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk in the shard."""
        return self.payload_bytes + CRC_BYTES

    def shard_bytes(self, chunks: int, shard_tiles: int) -> int:
        """Bytes of a shard file that holds so many chunks."""
        return chunks * self.chunk_bytes + index_bytes(shard_tiles)


FLOAT16 = Form("float16", EMBEDDING_VALUES * 2)
INT8 = Form("int8", EMBEDDING_VALUES)


def form_of(store_dtype: str) -> Form:
    """The form of a store dtype.

    Raises
    ------
    InputError
        When there is none.
    """
    for form in (FLOAT16, INT8):
        if form.dtype == store_dtype:
            return form
    raise InputError(f"store dtype {store_dtype!r}: known are float16 and int8.")


def payload(stored: Stored) -> memoryview:
    """The bytes of one embedding as a chunk holds them: C order, little-endian; a view where the array allows."""
    if isinstance(stored, Quantised):
        array: npt.NDArray[np.generic] = np.ascontiguousarray(stored.values)
    else:
        array = np.ascontiguousarray(stored, dtype="<f2")
    return array.reshape(-1).view(np.uint8).data


def extremes(stored: Stored) -> tuple[np.float16, np.float16]:
    """Smallest and largest value; infinite or NaN when one of the values is, or is too large for float16."""
    if isinstance(stored, Quantised):
        channels = stored.values.reshape(len(stored.scales), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            low = (channels.min(axis=1) * stored.scales).min().astype(np.float16)
            high = (channels.max(axis=1) * stored.scales).max().astype(np.float16)
        return low, high
    return _extremes_of_bits(np.frombuffer(payload(stored), "<i2"))


def _extremes_of_bits(bits: npt.NDArray[np.int16]) -> tuple[np.float16, np.float16]:
    """Of float16, on their bits, which order as integers within each sign.

    numpy's own reductions of float16 are 50 times slower than everything else that a commit does.
    """
    low, high, most_negative = int(bits.min()), int(bits.max()), int(bits.view("<u2").max())
    smallest = most_negative if most_negative >= 0x8000 else low
    largest = high if high >= 0 else low
    limits = np.array([smallest & 0xFFFF, largest & 0xFFFF], dtype=np.uint16).view(np.float16)
    return limits[0], limits[1]


def index_bytes(shard_tiles: int) -> int:
    """Bytes of the index at the end of a shard, with its checksum."""
    return shard_tiles * 16 + CRC_BYTES


def chunk_numbers(keys: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Which chunk each of a shard's tiles is, counted from 0; tiles of equal keys share that of the first."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def shard_index(
    slots: npt.NDArray[np.int64], chunks: npt.NDArray[np.int64], form: Form, shard_tiles: int
) -> npt.NDArray[np.uint64]:
    """Offset and length of each slot's chunk, shape (shard_tiles, 2), when ``slots`` are these chunks."""
    index = np.full((shard_tiles, 2), NOT_STORED, dtype="<u8")
    index[slots, 0] = chunks.astype(np.uint64) * np.uint64(form.chunk_bytes)
    index[slots, 1] = form.chunk_bytes
    return index


def encode_index(index: npt.NDArray[np.uint64]) -> bytes:
    """An index as it stands at the end of a shard, with its checksum."""
    data = index.astype("<u8", copy=False).tobytes()
    return data + crc32c(data).to_bytes(CRC_BYTES, "little")


class ShardFile:
    """A shard opened for reading; its chunks are read in place.

    Reads use ``pread``, so threads share one object; the file is closed with the last reference to it.

    Parameters
    ----------
    root : Path
        The store.
    shard : int
        Number of the shard.
    form : Form
        Of the store's embeddings.
    shard_tiles : int
        Slots of a shard.

    Attributes
    ----------
    path : Path
        The file.
    size : int
        Its bytes when it was opened.
    identity : tuple of int
        No other file has the same, nor has this one once somebody writes to it.

    Raises
    ------
    CorruptionError
        When the file is missing, a link or no regular file.
    StorageError
        When it is there but the system refuses to open it.
    """

    def __init__(self, root: Path, shard: int, form: Form, shard_tiles: int) -> None:
        self.path = layout.shard_path(root, shard)
        self._form, self._shard_tiles = form, shard_tiles
        self._descriptor = -1
        try:
            self._descriptor = open_inside(root, self.path)
        except FileNotFoundError as error:
            raise CorruptionError(f"the shard file {self.path} is missing") from error
        except OSError as error:
            raise self._unreadable(error) from error
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def _unreadable(self, error: OSError) -> EmbedcacheError:
        """A file on the way is corruption; denied, too many open files, a failing disk: none of it is."""
        if isinstance(error, NotADirectoryError):
            return CorruptionError(f"the shard file {self.path} is no file: {error.strerror}")
        return read_error(error, self.path)

    @cached_property
    def index(self) -> npt.NDArray[np.uint64]:
        """Offset and length of each slot's chunk as the file says, shape (shard_tiles, 2).

        Raises
        ------
        CorruptionError
            When the file is too short, or the index differs from its checksum.
        """
        length = index_bytes(self._shard_tiles)
        data = bytearray(length)
        count = self._preadv([data], self.size - length) if self.size >= length else 0
        if count != length:
            raise CorruptionError(f"the shard file {self.path} is cut short ({self.size} bytes)")
        if crc32c(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
            raise CorruptionError(f"the index of the shard file {self.path} differs from its checksum")
        return np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(self._shard_tiles, 2)

    def offset_of(self, slot: int) -> int:
        """Where the chunk of a slot begins, as the file's index says; CorruptionError when it holds none."""
        offset, length = self.index[slot].tolist()
        if length != self._form.chunk_bytes:
            raise CorruptionError(f"slot {slot} of the shard file {self.path} holds no embedding")
        return int(offset)

    def read_into(self, slot: int, out: memoryview) -> int:
        """Read the chunk of a slot, where the file's index says, into ``out``, as :meth:`read_at`."""
        return self.read_at(self.offset_of(slot), out)

    def read_unchecked(self, slot: int, out: memoryview) -> None:
        """Read the chunk of a slot into ``out``, comparing nothing; CorruptionError when it is cut short."""
        offset = self.offset_of(slot)
        if self._preadv([out], offset) != self._form.payload_bytes:
            raise CorruptionError(f"{self._chunk_at(offset)} is cut short")

    def read_at(self, offset: int, out: memoryview) -> int:
        """Read the chunk at an offset into ``out``, bytes of one embedding; returns its CRC-32C.

        Raises
        ------
        CorruptionError
            When the file ends before the chunk does, or it differs from the checksum behind it.
        """
        stored, found, end = bytearray(CRC_BYTES), 0, self._form.payload_bytes
        whole = offset + self._form.chunk_bytes <= self.size
        for at in range(0, end if whole else 0, _CHECKED_PIECE):
            piece = out[at : at + _CHECKED_PIECE]
            last = at + len(piece) == end
            wanted = len(piece) + CRC_BYTES * last
            whole = whole and self._preadv([piece, stored] if last else [piece], offset + at) == wanted
            found = crc32c(piece, found)
        if not whole:
            raise CorruptionError(f"{self._chunk_at(offset)} is cut short")
        if found.to_bytes(CRC_BYTES, "little") != stored:
            raise CorruptionError(f"{self._chunk_at(offset)} differs from its checksum")
        return found

    def will_need(self, slot: int) -> None:
        """Let the system begin to read the chunk of a slot, without waiting for it."""
        if hasattr(os, "posix_fadvise"):
            length = self._form.chunk_bytes
            os.posix_fadvise(self._descriptor, self.offset_of(slot), length, os.POSIX_FADV_WILLNEED)

    def fileno(self) -> int:
        """The open file's descriptor."""
        return self._descriptor

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return self._form.chunk_bytes

    def require_size(self) -> None:
        """Refuse a file that has been cut since it was opened: OSError."""
        if os.fstat(self._descriptor).st_size < self.size:
            raise OSError(f"{self.path} was cut short")

    def _chunk_at(self, offset: int) -> str:
        return f"the chunk at byte {offset} of the shard file {self.path}"

    def digest(self) -> str:
        """``sha256:…`` of the whole file."""
        sha256, offset, buffer = hashlib.sha256(), 0, memoryview(bytearray(_PIECE))
        while count := self._preadv([buffer], offset):
            sha256.update(buffer[:count])
            offset += count
        return f"sha256:{sha256.hexdigest()}"

    def _preadv(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        try:
            return os.preadv(self._descriptor, buffers, offset)
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()
