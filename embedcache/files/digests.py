"""Turns bytes and JSON values into checksums and digests that are the same on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from crc32c import crc32c as _crc32c

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer, before: int = 0) -> int:
    """CRC-32C (Castagnoli) of ``data``, as Zarr's ``crc32c`` codec stores it; other threads go on meanwhile.

    Parameters
    ----------
    data : bytes-like
        C-contiguous.
    before : int
        The checksum of what stands before ``data``, to get that of both together.
    """
    return int(_crc32c(data, before))


def sha256_hex(data: Buffer) -> str:
    """SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_json(value: Any) -> str:
    """SHA-256 of :func:`canonical_json` of ``value``."""
    return sha256_hex(canonical_json(value).encode("ascii"))
