"""Turns what was done to one shard into a journal record and back; packs flags and numbers into text.

A shard record says all there is to say about the shard, so the last one holds and no history is needed.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError
from embedcache.volume.volume import ImageRecord

DIGEST_BYTES = 32


@dataclass(frozen=True)
class TileRecord:
    """What the journal says of one committed tile.

    Parameters
    ----------
    crc32c : int
        CRC-32C of the 2 MiB of the stored embedding.
    input_digest : str
        SHA-256, 64 hex digits, of the pixels that were encoded.
    minimum, maximum : float
        Of the stored embedding.
    """

    crc32c: int
    input_digest: str
    minimum: float
    maximum: float


@dataclass(frozen=True)
class ShardRecord:
    """All there is to say about one shard.

    Parameters
    ----------
    shard : int
        Number of the shard; its slot ``s`` is tile ``shard * shard_tiles + s``.
    slots : ndarray of int64
        Committed slots, ascending; the following four belong to them in this order.
    crc : ndarray of uint32
        CRC-32C of each embedding.
    minimum, maximum : ndarray of float16
        Of each embedding.
    inputs : str
        Base64 of 32 bytes of SHA-256 of each tile's input pixels; packed, as few ever look.
    skipped, failed : dict of int to str
        Slot to reason.
    digest : str
        "sha256:…" of the shard file; empty when the shard has no committed tile and so no file.
    size : int
        Bytes of the shard file.
    numerics : int or None
        Number of the numerics record under which the last tiles were made.
    writer : str
        Who wrote it: process and host.
    seconds : dict of str to float
        Wall time of each stage, as the writer measured it.
    """

    shard: int
    slots: npt.NDArray[np.int64]
    crc: npt.NDArray[np.uint32]
    minimum: npt.NDArray[np.float16]
    maximum: npt.NDArray[np.float16]
    inputs: str
    skipped: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    digest: str = ""
    size: int = 0
    numerics: int | None = None
    writer: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self, shard_tiles: int, kind: str = "shard") -> dict[str, Any]:
        """The record as JSON values; ``kind`` is "shard" or "intent"."""
        flags = np.zeros(shard_tiles, dtype=np.bool_)
        flags[self.slots] = True
        return {
            "kind": kind,
            "shard": self.shard,
            "slots": pack(np.packbits(flags, bitorder="little").tobytes()),
            "crcs": pack(self.crc.astype("<u4").tobytes()),
            "min": pack(self.minimum.astype("<f2").tobytes()),
            "max": pack(self.maximum.astype("<f2").tobytes()),
            "inputs": self.inputs,
            "skipped": _by_reason(self.skipped),
            "failed": _by_reason(self.failed),
            "digest": self.digest,
            "bytes": self.size,
            "numerics": self.numerics,
            "writer": self.writer,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], shard_tiles: int) -> ShardRecord:
        """The record of a journal line.

        Raises
        ------
        CorruptionError
            When its parts do not fit together.
        """
        try:
            bits = np.frombuffer(unpack(values["slots"]), np.uint8)
            slots = np.flatnonzero(np.unpackbits(bits, count=shard_tiles, bitorder="little"))
            record = cls(
                shard=values["shard"],
                slots=slots,
                crc=np.frombuffer(unpack(values["crcs"]), "<u4"),
                minimum=np.frombuffer(unpack(values["min"]), "<f2"),
                maximum=np.frombuffer(unpack(values["max"]), "<f2"),
                inputs=values["inputs"],
                skipped=_by_slot(values["skipped"], shard_tiles),
                failed=_by_slot(values["failed"], shard_tiles),
                digest=values["digest"],
                size=values["bytes"],
                numerics=values["numerics"],
                writer=values["writer"],
                seconds=values["seconds"],
            )
            sizes = {
                len(record.crc),
                len(record.minimum),
                len(record.maximum),
            }
            if sizes != {len(slots)} or len(record.inputs) != -(-len(slots) * DIGEST_BYTES // 3) * 4:
                raise ValueError("its parts differ in length")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(
                f"A journal record of shard {values.get('shard')} is malformed: {error}."
            ) from error
        return record

    def digest_of(self, position: int) -> str:
        """Input digest (64 hex digits) of the tile at ``position`` of ``slots``."""
        return self._inputs[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES].hex()

    @cached_property
    def _inputs(self) -> bytes:
        return unpack(self.inputs)


def table_record(n_tiles: int, images: Sequence[ImageRecord]) -> dict[str, Any]:
    """Journal record of how many tile numbers there are, and of the images that are new."""
    return {"kind": "table", "tiles": n_tiles, "images": [image.to_dict() for image in images]}


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


def _by_reason(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for slot in sorted(reasons):
        grouped.setdefault(reasons[slot], []).append(slot)
    return grouped


def _by_slot(grouped: Mapping[str, list[int]], shard_tiles: int) -> dict[int, str]:
    reasons = {int(slot): reason for reason, slots in grouped.items() for slot in slots}
    if any(not 0 <= slot < shard_tiles for slot in reasons):
        raise ValueError("a slot lies outside the shard")
    return reasons
