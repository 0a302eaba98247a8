"""Compressors for test arrays that compress nothing and count how often a chunk is decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numcodecs
import zarr
from zarr.abc.codec import BytesBytesCodec

_lock = threading.Lock()
_decoded = [0]


def _count() -> None:
    with _lock:
        _decoded[0] += 1


@contextmanager
def counted() -> Iterator[list[int]]:
    """A list whose only element is the number of decodes so far inside the block."""
    _decoded[0] = 0
    yield _decoded


class CountingV2(numcodecs.abc.Codec):
    codec_id = "embedcache-test-counting"

    def encode(self, buf: Any) -> bytes:
        return bytes(numcodecs.compat.ensure_bytes(buf))

    def decode(self, buf: Any, out: Any = None) -> Any:
        _count()
        return numcodecs.compat.ndarray_copy(buf, out)


@dataclass(frozen=True)
class CountingV3(BytesBytesCodec):
    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: Any) -> CountingV3:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "embedcache-test-counting"}

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        _count()
        return chunk_bytes

    async def _encode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return chunk_bytes

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return input_byte_length


numcodecs.register_codec(CountingV2)
zarr.registry.register_codec("embedcache-test-counting", CountingV3)

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2, "compressors": CountingV2()},
    "v3": {"zarr_format": 3, "compressors": [CountingV3()]},
}
