"""Turns flags, numbers and reasons into the text of a journal record, and back, each checked."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError


def pack(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def unpack(text: str) -> bytes:
    """Base64 text as bytes; ``ValueError`` when it is none."""
    return binascii.a2b_base64(text)


def pack_flags(flags: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A long row of flags as JSON: base64 of zlib of the bits, the first in the lowest bit."""
    bits = np.packbits(flags, bitorder="little").tobytes()
    return {"count": len(flags), "bits": pack(zlib.compress(bits, 6))}


def unpack_flags(values: Mapping[str, Any], limit: int) -> npt.NDArray[np.bool_]:
    """The flags of :func:`pack_flags`.

    Raises
    ------
    CorruptionError
        When they are malformed or more than ``limit``.
    """
    try:
        count = int(values["count"])
        if not 0 <= count <= limit:
            raise ValueError(f"{count} flags where at most {limit} were expected")
        size = -(-count // 8)
        data = zlib.decompressobj().decompress(unpack(values["bits"]), size + 1)
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes instead of {size}")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise CorruptionError(f"A row of flags in the journal is malformed: {error}.") from error
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").view(np.bool_)


def by_reason(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    """Slots grouped by their reason, as JSON."""
    grouped: dict[str, list[int]] = {}
    for slot in sorted(reasons):
        grouped.setdefault(reasons[slot], []).append(slot)
    return grouped


def by_slot(grouped: Mapping[str, list[int]], shard_tiles: int) -> dict[int, str]:
    """The reason of each slot; ``ValueError`` when one of them lies outside the shard."""
    reasons = {whole(slot): reason for reason, slots in grouped.items() for slot in slots}
    if any(not 0 <= slot < shard_tiles for slot in reasons):
        raise ValueError("a slot lies outside the shard")
    return reasons


def slot_flags(slots: npt.NDArray[np.int64], shard_tiles: int) -> str:
    """Slots of a shard as base64 of one bit each."""
    flags = np.zeros(shard_tiles, dtype=np.bool_)
    flags[slots] = True
    return pack(np.packbits(flags, bitorder="little").tobytes())


def flagged_slots(text: str, shard_tiles: int) -> npt.NDArray[np.int64]:
    """The slots of :func:`slot_flags`, ascending; ``ValueError`` when they are not those of a shard."""
    bits = np.frombuffer(unpack(text), np.uint8)
    if len(bits) != -(-shard_tiles // 8):
        raise ValueError("its slots are not those of a shard")
    return np.flatnonzero(np.unpackbits(bits, count=shard_tiles, bitorder="little"))


def whole(value: object) -> int:
    """The number itself; ``ValueError`` when it is none, or negative."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} where a number was expected")
    return value
