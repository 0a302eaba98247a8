"""Turns what was done to one shard into a journal record and back.

A shard record says all there is to say about the shard, so the last one holds and no history is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, InputError
from embedcache.store.journal.packing import (
    by_reason,
    by_slot,
    flagged_slots,
    pack,
    slot_flags,
    unpack,
    whole,
)
from embedcache.store.shards.shard import chunk_numbers, shard_index
from embedcache.volume.volume import ImageRecord

if TYPE_CHECKING:
    from embedcache.store.shards.shard import Form

DIGEST_BYTES = 32

NAME_LIMIT = 4096
"""Characters above which an image's name is refused."""

SIDE_LIMIT = 2**31
"""Pixels of an image's side above which a journal is refused."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class TileRecord:
    """What the journal says of one committed tile.

    Parameters
    ----------
    crc32c : int
        CRC-32C of the stored embedding: 2 MiB of a float16 store, 1 MiB of an int8 one.
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
        Committed slots, ascending; the following four (and ``scale_crcs``) belong to them in this order.
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
        Number of the numerics record under which the last of its embeddings were made.
    writer : str
        Who wrote it: process and host.
    seconds : dict of str to float
        Wall time of each stage, as the writer measured it.
    scale_crcs : ndarray of uint32, optional
        CRC-32C of each tile's row of scales; int8 only.
    stale : ShardRecord, optional
        Tiles that the file still holds but that count no longer: their pixels changed, or they were being
        replaced when the writer was killed. Only the columns of this record mean anything.
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
    scale_crcs: npt.NDArray[np.uint32] | None = None
    stale: ShardRecord | None = None

    def to_dict(self, shard_tiles: int, kind: str = "shard") -> dict[str, Any]:
        """The record as JSON values; ``kind`` is "shard" or "intent"."""
        held = self.stored
        values = {
            "kind": kind,
            "shard": self.shard,
            "slots": slot_flags(held.slots, shard_tiles),
            "crcs": pack(held.crc.astype("<u4").tobytes()),
            "min": pack(held.minimum.astype("<f2").tobytes()),
            "max": pack(held.maximum.astype("<f2").tobytes()),
            "inputs": held.inputs,
            "skipped": by_reason(self.skipped),
            "failed": by_reason(self.failed),
            "digest": self.digest,
            "bytes": self.size,
            "numerics": self.numerics,
            "writer": self.writer,
            "seconds": self.seconds,
        }
        if held.scale_crcs is not None:
            values["scale_crcs"] = pack(held.scale_crcs.astype("<u4").tobytes())
        if self.stale is not None:
            values["stale"] = slot_flags(self.stale.slots, shard_tiles)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], shard_tiles: int) -> ShardRecord:
        """The record of a journal line.

        Raises
        ------
        CorruptionError
            When its parts do not fit together.
        """
        try:
            scale_crcs = values.get("scale_crcs")
            record = cls(
                shard=whole(values["shard"]),
                slots=flagged_slots(values["slots"], shard_tiles),
                crc=np.frombuffer(unpack(values["crcs"]), "<u4"),
                minimum=np.frombuffer(unpack(values["min"]), "<f2"),
                maximum=np.frombuffer(unpack(values["max"]), "<f2"),
                inputs=values["inputs"],
                skipped=by_slot(values["skipped"], shard_tiles),
                failed=by_slot(values["failed"], shard_tiles),
                digest=values["digest"],
                size=whole(values["bytes"]),
                numerics=None if values["numerics"] is None else whole(values["numerics"]),
                writer=str(values["writer"]),
                seconds=dict(values["seconds"]),
                scale_crcs=None if scale_crcs is None else np.frombuffer(unpack(scale_crcs), "<u4"),
            )
            record._check()
            if "stale" in values:
                record = record.without(flagged_slots(values["stale"], shard_tiles))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(
                f"A journal record of shard {values.get('shard')} is malformed: {error}."
            ) from error
        return record

    def _check(self) -> None:
        """Refuse parts that do not fit together: ``ValueError``."""
        count = len(self.slots)
        columns: list[npt.NDArray[Any]] = [self.crc, self.minimum, self.maximum]
        if self.scale_crcs is not None:
            columns.append(self.scale_crcs)
        if any(len(column) != count for column in columns):
            raise ValueError("its parts differ in length")
        if len(self.inputs) != -(-count * DIGEST_BYTES // 3) * 4:
            raise ValueError("its parts differ in length")
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError("its digest is none")

    @property
    def stored(self) -> ShardRecord:
        """The record with all tiles that the file holds, those that count no longer among them."""
        if self.stale is None:
            return self
        parts = (self, self.stale)
        order = np.argsort(np.concatenate([part.slots for part in parts]))
        inputs = b"".join(part.input_bytes for part in parts)
        digests = np.frombuffer(inputs, np.uint8).reshape(-1, DIGEST_BYTES)[order]
        scales = [part.scale_crcs for part in parts if part.scale_crcs is not None]
        return replace(
            self,
            slots=np.concatenate([part.slots for part in parts])[order],
            crc=np.concatenate([part.crc for part in parts])[order],
            minimum=np.concatenate([part.minimum for part in parts])[order],
            maximum=np.concatenate([part.maximum for part in parts])[order],
            inputs=pack(digests.tobytes()),
            scale_crcs=np.concatenate(scales)[order] if len(scales) == len(parts) else None,
            stale=None,
        )

    def without(self, slots: Iterable[int] | npt.NDArray[np.int64]) -> ShardRecord:
        """The record of the same file with these slots, where it has them, counted as stale.

        The slots that are stale already stay so.
        """
        before = [] if self.stale is None else self.stale.slots.tolist()
        gone = np.array(sorted({*(int(slot) for slot in slots), *before}), dtype=np.int64)
        held = self.stored
        dead = np.isin(held.slots, gone)
        if not dead.any():
            return held
        return replace(held._rows(~dead), stale=held._rows(dead))

    def _rows(self, chosen: npt.NDArray[np.bool_]) -> ShardRecord:
        digests = np.frombuffer(self.input_bytes, np.uint8).reshape(-1, DIGEST_BYTES)
        return replace(
            self,
            slots=self.slots[chosen],
            crc=self.crc[chosen],
            minimum=self.minimum[chosen],
            maximum=self.maximum[chosen],
            inputs=pack(digests[chosen].tobytes()),
            scale_crcs=None if self.scale_crcs is None else self.scale_crcs[chosen],
        )

    def index(self, shard_tiles: int, form: Form) -> npt.NDArray[np.uint64]:
        """The index that the shard file has: offset and length of each slot's chunk, (shard_tiles, 2).

        Tiles of the same input and the same bytes share a chunk, which stands where the first of them would.
        A file whose recorded size is that of one chunk for each tile shares none.
        """
        held = self.stored
        keys: list[tuple[int, str | int]] = list(zip(held.crc.tolist(), held.slots.tolist(), strict=True))
        if self.size != form.shard_bytes(len(keys), shard_tiles):
            keys = [(crc, held.digest_of(at)) for at, (crc, _) in enumerate(keys)]
        return shard_index(held.slots, chunk_numbers(keys), form, shard_tiles)

    def digest_of(self, position: int) -> str:
        """Input digest (64 hex digits) of the tile at ``position`` of ``slots``."""
        return self.input_bytes[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES].hex()

    @cached_property
    def input_bytes(self) -> bytes:
        """The input digests of all tiles of ``slots``, 32 bytes each."""
        return unpack(self.inputs)


def table_record(n_tiles: int, images: Sequence[ImageRecord]) -> dict[str, Any]:
    """Journal record of how many tile numbers there are, and of the images that are new.

    Raises
    ------
    InputError
        When an image has a name that no reader would accept.
    """
    for image in images:
        if not is_name(image.name):
            raise InputError(
                f"An image is called {image.name!r}.", hint="Give it a name without control characters."
            )
    return {"kind": "table", "tiles": n_tiles, "images": [image.to_dict() for image in images]}


def is_name(name: str) -> bool:
    """Whether an image may be called so: a relative path that leads nowhere but down."""
    parts = name.split("/")
    steps = any(part in ("", ".", "..") for part in parts)
    return not steps and len(name) <= NAME_LIMIT and not _CONTROL.search(name)


def read_image(values: Any) -> ImageRecord:
    """An image of the journal's table, once it is known to be fit to be joined to a folder.

    Raises
    ------
    CorruptionError
        When its name could lead out of a folder, or its size cannot be.
    """
    image = ImageRecord.from_dict(values)
    if not is_name(image.name):
        raise CorruptionError(f"The journal names an image {image.name[:100]!r}, which is no name of ours.")
    if not (0 < image.height < SIDE_LIMIT and 0 < image.width < SIDE_LIMIT):
        raise CorruptionError(
            f"The journal says that {image.name} has {image.height} × {image.width} pixels."
        )
    return image
