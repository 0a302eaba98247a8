"""Turns a replayed journal into one binary file and back: columns over the tile numbers and the shards.

The file is a safetensors file. Small columns are read at once; the large ones (input digests, extremes) only
where somebody asks, with ``pread``. All of it is compared with its recorded CRC-32C when it is opened.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError
from embedcache.files import crc32c, open_inside, read_error
from embedcache.store import layout
from embedcache.store.journal.known import COMMITTED, FAILED, SKIPPED
from embedcache.store.journal.lines import hint_for
from embedcache.store.journal.packing import pack, whole
from embedcache.store.journal.record import DIGEST_BYTES, ShardRecord, read_image

STALE = 0x80
"""Bit of the column ``flags`` of a tile that its shard's file holds but that counts no longer."""

_PLAIN = np.uint8(0x7F)

HEADER_LIMIT = 64 << 20
"""Bytes above which the header is refused, and a journal is not compacted."""

_NAME = re.compile(r"snapshot-[0-9]{1,19}\.safetensors")
_PIECE = 1 << 20
DTYPES = {"U8": "<u1", "U32": "<u4", "F16": "<f2", "I32": "<i4", "I64": "<i8"}

TILE_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "flags": ("U8", ()),
    "wanted": ("U8", ()),
    "crc": ("U32", ()),
    "scale_crc": ("U32", ()),
    "reason": ("U32", ()),
    "minimum": ("F16", ()),
    "maximum": ("F16", ()),
    "inputs": ("U8", (DIGEST_BYTES,)),
}
SHARD_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "shard_sequence": ("I64", ()),
    "shard_bytes": ("I64", ()),
    "shard_digest": ("U8", (DIGEST_BYTES,)),
    "shard_numerics": ("I32", ()),
}
Column = npt.NDArray[Any]


def snapshot_name(sequence: int) -> str:
    """Name of the snapshot that stands for all records up to a number."""
    return f"snapshot-{sequence}.safetensors"


def is_snapshot(name: str) -> bool:
    """Whether a file of the journal's folder is called as a snapshot is."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Columns:
    """The columns that are read at once; arrays of their own, as later records change them."""

    flags: npt.NDArray[np.uint8]
    stale: npt.NDArray[np.bool_]
    crc: npt.NDArray[np.uint32]
    scale_crc: npt.NDArray[np.uint32] | None
    wanted: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.uint32]
    shard_sequence: npt.NDArray[np.int64]
    shard_bytes: npt.NDArray[np.int64]


class Snapshot:
    """A snapshot opened for reading; it stays readable when a later compaction removes its name.

    Made by :meth:`open`. ``tiles`` and ``sequence`` say how many tile numbers and records it stands for;
    ``numerics``, ``selections``, ``images``, ``reasons``, ``certificates`` and ``former`` are the journal's.
    """

    def __init__(self, descriptor: int, path: Path, sequence: int, shard_tiles: int) -> None:
        self._descriptor = descriptor
        self.path = path
        self.sequence = sequence
        self.shard_tiles = shard_tiles
        self.size = 0
        self.tiles = 0
        self._places: dict[str, int] = {}

    @classmethod
    def open(
        cls,
        root: Path,
        values: Mapping[str, Any],
        shard_tiles: int,
        require_rows: Callable[[int], None],
    ) -> Snapshot:
        """Open the file that a journal record of the kind ``snapshot`` names, and check it.

        ``require_rows`` refuses a number of tiles that the tile table does not back.

        Raises
        ------
        CorruptionError
            When the file is missing, not the one recorded, or makes no sense.
        StorageError
            When it cannot be read.
        """
        name = values["file"]
        if not (isinstance(name, str) and is_snapshot(name)):
            raise ValueError(f"{name!r} is no name of a snapshot")
        path = root / layout.JOURNAL / name
        try:
            snapshot = cls(open_inside(root, path), path, whole(values["seq"]), shard_tiles)
            snapshot._check_bytes(values)
            snapshot._read_header(require_rows)
        except FileNotFoundError as error:
            raise CorruptionError(
                f"{path} is missing: most of the journal stands in it.", hint=hint_for(root)
            ) from error
        except OSError as error:
            raise read_error(error, path) from error
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise CorruptionError(f"{path} is malformed: {error!r}.", hint=hint_for(root)) from error
        return snapshot

    def _check_bytes(self, values: Mapping[str, Any]) -> None:
        self.size = os.fstat(self._descriptor).st_size
        checksum, offset = 0, 0
        if self.size == values["bytes"]:
            while piece := os.pread(self._descriptor, _PIECE, offset):
                checksum, offset = crc32c(piece, checksum), offset + len(piece)
        if offset != values["bytes"] or f"{checksum:08x}" != values["file_crc32c"]:
            raise CorruptionError(
                f"{self.path} differs from its recorded checksum.", hint=hint_for(self.path.parents[1])
            )

    def _read_header(self, require_rows: Callable[[int], None]) -> None:
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if not 2 <= length <= min(HEADER_LIMIT, self.size - 8):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(os.pread(self._descriptor, length, 8))
        about = json.loads(header.pop("__metadata__")["journal"])
        self.tiles = whole(about["tiles"])
        if about["shard_tiles"] != self.shard_tiles:
            raise ValueError("it is of another store")
        require_rows(self.tiles)
        self._places = {
            column: self._place(entry, *expected(column, self.tiles, self.shard_tiles), 8 + length)
            for column, entry in header.items()
        }
        self.reasons = [str(reason) for reason in about["reasons"]]
        self.images = [read_image(image) for image in about["images"]]
        self.numerics, self.selections, self.certificates = (
            [dict(entry) for entry in about[name]] for name in ("numerics", "selections", "certificates")
        )
        self.former = [str(fingerprint) for fingerprint in about.get("former", [])]
        self.columns = self._read_columns()

    def _place(self, entry: Mapping[str, Any], dtype: str, shape: tuple[int, ...], base: int) -> int:
        """Offset of a column in the file, once it is known to be whole and of the right kind."""
        start, stop = (whole(value) for value in entry["data_offsets"])
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if entry["dtype"] != dtype or tuple(entry["shape"]) != shape or stop - start != size:
            raise ValueError(f"a column of {entry['dtype']} {entry['shape']}")
        if base + stop > self.size:
            raise ValueError("a column ends behind the file")
        return base + start

    def _read_columns(self) -> Columns:
        flags = self.column("flags")
        stale = (flags & STALE) != 0
        flags &= _PLAIN
        reason = self.column("reason")
        sequence = self.column("shard_sequence")
        if (flags > FAILED).any() or reason.max(initial=0) > len(self.reasons):
            raise ValueError("a tile of an unknown state")
        if ((flags >= SKIPPED) & (reason == 0)).any():
            raise ValueError("a skipped or failed tile without a reason")
        if len(sequence) and not (sequence.min() >= 0 and sequence.max() <= self.sequence):
            raise ValueError("a shard of an unknown record")
        if self.column("shard_numerics")[sequence > 0].max(initial=-1) >= len(self.numerics):
            raise ValueError("a shard of unknown numerics")
        return Columns(
            flags=flags,
            stale=stale,
            crc=self.column("crc"),
            scale_crc=self.column("scale_crc") if "scale_crc" in self._places else None,
            wanted=self.column("wanted") != 0,
            reason=reason,
            shard_sequence=sequence,
            shard_bytes=self.column("shard_bytes"),
        )

    def column(self, name: str, first: int = 0, count: int | None = None) -> Column:
        """Rows of a column, as an array of its own: all of them, or ``count`` from ``first`` on."""
        dtype, shape = expected(name, self.tiles, self.shard_tiles)
        count = shape[0] - first if count is None else min(count, shape[0] - first)
        out = np.empty((count, *shape[1:]), DTYPES[dtype])
        row = math.prod(shape[1:]) * out.itemsize
        view = out.reshape(-1).view(np.uint8).data
        offset = self._places[name] + first * row
        while view:
            try:
                taken = os.preadv(self._descriptor, [view[: _PIECE << 4]], offset)
            except OSError as error:
                raise read_error(error, self.path) from error
            if not taken:
                raise CorruptionError(
                    f"{self.path} became shorter while it was read.", hint=hint_for(self.path.parents[1])
                )
            view, offset = view[taken:], offset + taken
        return out

    def shard_record(self, shard: int) -> ShardRecord:
        """The record of a shard; who wrote it and how long that took is not kept in a snapshot."""
        first, count = shard * self.shard_tiles, self.shard_tiles
        flags = self.column("flags", first, count)
        stale, flags = (flags & STALE) != 0, flags & _PLAIN
        held = np.flatnonzero((flags == COMMITTED) | stale)
        reason = self.column("reason", first, count)
        size = int(self.column("shard_bytes", shard, 1)[0])
        numerics = int(self.column("shard_numerics", shard, 1)[0])
        scales = self.column("scale_crc", first, count)[held] if "scale_crc" in self._places else None
        record = ShardRecord(
            shard=shard,
            slots=held,
            crc=self.column("crc", first, count)[held],
            minimum=self.column("minimum", first, count)[held],
            maximum=self.column("maximum", first, count)[held],
            inputs=pack(self.column("inputs", first, count)[held].tobytes()),
            skipped=self._reasons(flags == SKIPPED, reason),
            failed=self._reasons(flags == FAILED, reason),
            digest=f"sha256:{self.column('shard_digest', shard, 1).tobytes().hex()}" if size else "",
            size=size,
            numerics=None if numerics < 0 else numerics,
            scale_crcs=scales,
        )
        return record.without(np.flatnonzero(stale))

    def _reasons(self, chosen: npt.NDArray[np.bool_], reason: Column) -> dict[int, str]:
        return {int(slot): self.reasons[int(reason[slot]) - 1] for slot in np.flatnonzero(chosen)}

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


def expected(column: str, tiles: int, shard_tiles: int) -> tuple[str, tuple[int, ...]]:
    """Element type and shape of a column; ``KeyError`` when there is none of that name."""
    if column in TILE_COLUMNS:
        dtype, inner = TILE_COLUMNS[column]
        return dtype, (tiles, *inner)
    dtype, inner = SHARD_COLUMNS[column]
    return dtype, (-(-tiles // shard_tiles), *inner)
