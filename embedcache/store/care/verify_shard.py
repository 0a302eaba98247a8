"""Turns one shard's record and the bytes on disk into a verdict: which embeddings are the ones recorded.

Every byte of the file takes part: each chunk's CRC-32C is compared with the recorded one and with the one behind
the chunk, the index with the one that follows from the record, the size with the record's. So flipped bits, cut
files and chunks or whole files in the wrong place are all found by one pass that reads at the speed of memory.
The file's SHA-256 is compared on request: it costs six times that pass, and finds only what was made on purpose.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from embedcache.errors import CorruptionError, StorageError
from embedcache.files import crc32c, is_readers_fault, open_inside, read_error
from embedcache.store import layout
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.scales import read_scales
from embedcache.store.shards.shard import CRC_BYTES, Form

CUT_SHORT = "the file is cut short before its end"
MISPLACED = "its bytes are whole, but not the ones recorded for this place (swapped?)"
FLIPPED = "its bytes differ from the checksum behind them and from the recorded one"
CHECKSUM = "the checksum stored behind it is damaged; its bytes are right"
SCALES = "its scales are not the ones recorded"

_HASHED_PIECE = 1 << 20
_own = threading.local()


@dataclass(frozen=True)
class ShardVerdict:
    """What one shard's file is, compared with its record.

    Parameters
    ----------
    record : ShardRecord
        What it was compared with.
    there : bool
        Whether there is a file at all (or none is expected).
    wrong : dict of int to str
        Slots whose chunk is not the one recorded, with the reason.
    faults : tuple of str
        What else is wrong with the file: its size, its index, its digest. A file with faults is read by nobody.
    scales : dict of int to str
        Slots of an int8 store whose scales are not the ones recorded, with the reason.
    size : int
        Bytes that were read.
    """

    record: ShardRecord
    there: bool = True
    wrong: dict[int, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    scales: dict[int, str] = field(default_factory=dict)
    size: int = 0

    @property
    def intact(self) -> bool:
        """Whether every byte is the one recorded."""
        return self.there and not (self.wrong or self.faults or self.scales)

    @property
    def broken(self) -> dict[int, str]:
        """Slots that cannot be read as recorded, with the reason."""
        slots = self.record.slots.tolist()
        if not self.there:
            return dict.fromkeys(slots, "the shard file is missing")
        if self.faults:
            return {slot: self.wrong.get(slot, self.faults[0]) for slot in slots}
        return self.scales | self.wrong


def check_shard(
    root: Path, record: ShardRecord, form: Form, shard_tiles: int, *, digests: bool = False
) -> ShardVerdict:
    """Compare a shard's file with a record; nothing is written, no lock is taken.

    Parameters
    ----------
    root : Path
        The store.
    record : ShardRecord
        What the journal says of the shard.
    form : Form
        What one stored embedding is.
    shard_tiles : int
        Slots of a shard.
    digests : bool
        Compare the file's SHA-256 as well.

    Raises
    ------
    StorageError
        When this user may not read it: that is no damage.
    """
    if not len(record.slots):
        return ShardVerdict(record)
    path = layout.shard_path(root, record.shard)
    try:
        descriptor = open_inside(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return ShardVerdict(record, there=False)
    except CorruptionError as error:
        return _unreadable(record, error.message)
    except OSError as error:
        return _unreadable(record, _what_disk_says(error, path))
    try:
        verdict = _check_open(descriptor, record, form, shard_tiles, digests)
        return _with_scales(root, verdict, shard_tiles)
    except OSError as error:
        return _unreadable(record, _what_disk_says(error, path))
    finally:
        os.close(descriptor)


def _what_disk_says(error: OSError, path: Path) -> str:
    """Why a file cannot be read, in words; where that says nothing about the file, our error."""
    refusal = read_error(error, path)
    if is_readers_fault(error):
        raise refusal from error
    return refusal.message


def _unreadable(record: ShardRecord, reason: str) -> ShardVerdict:
    return ShardVerdict(record, wrong=dict.fromkeys(record.slots.tolist(), reason))


def _with_scales(root: Path, verdict: ShardVerdict, shard_tiles: int) -> ShardVerdict:
    """The verdict with what is wrong with the file of the scales, which int8 stores have."""
    record = verdict.record
    if record.scale_crcs is None:
        return verdict
    try:
        scales = read_scales(root, record.shard, shard_tiles)
    except (CorruptionError, StorageError) as error:
        if isinstance(error.__cause__, OSError) and is_readers_fault(error.__cause__):
            raise
        return replace(verdict, scales=dict.fromkeys(record.slots.tolist(), error.message))
    wrong = {
        slot: SCALES
        for slot, crc in zip(record.slots.tolist(), record.scale_crcs.tolist(), strict=True)
        if scales.crc(slot) != crc
    }
    if not scales.intact and not wrong:
        return replace(
            verdict, faults=(*verdict.faults, "the file of its scales differs from its own checksum")
        )
    return replace(verdict, scales=wrong)


def _check_open(
    descriptor: int, record: ShardRecord, form: Form, shard_tiles: int, digests: bool
) -> ShardVerdict:
    index = record.index(shard_tiles, form)
    crcs = dict(zip(record.slots.tolist(), record.crc.tolist(), strict=True))
    reasons: dict[int, str | None] = {}
    wrong: dict[int, str] = {}
    for slot in record.slots.tolist():
        offset = int(index[slot, 0])
        if offset not in reasons:  # identical tiles share one chunk
            reasons[offset] = _check_chunk(descriptor, offset, form.payload_bytes, crcs[slot])
        if reason := reasons[offset]:
            wrong[slot] = reason
    faults = [*_check_end(descriptor, record, index.astype("<u8").tobytes())]
    if digests and not wrong and not faults and _sha256(descriptor) != record.digest:
        faults.append("the file's SHA-256 is not the recorded one, though every checksum in it is")
    return ShardVerdict(record, wrong=wrong, faults=tuple(faults), size=os.fstat(descriptor).st_size)


def _check_chunk(descriptor: int, offset: int, payload: int, recorded: int) -> str | None:
    """What is wrong with one chunk, or None."""
    buffer = _buffer(payload + CRC_BYTES)
    if not _read_at(descriptor, buffer.data, offset):
        return CUT_SHORT
    found, stored = crc32c(buffer[:payload].data), int.from_bytes(buffer[payload:].tobytes(), "little")
    if found == recorded:
        return None if stored == recorded else CHECKSUM
    return MISPLACED if found == stored else FLIPPED


def _check_end(descriptor: int, record: ShardRecord, index: bytes) -> Iterator[str]:
    size = os.fstat(descriptor).st_size
    if size != record.size:
        yield f"the file has {size:,} bytes; {record.size:,} are recorded"
    expected = index + crc32c(index).to_bytes(CRC_BYTES, "little")
    if os.pread(descriptor, len(expected), record.size - len(expected)) != expected:
        yield "the file's index is not the one that follows from the record"


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    buffer, offset = memoryview(bytearray(_HASHED_PIECE)), 0
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return f"sha256:{digest.hexdigest()}"


def _read_at(descriptor: int, out: memoryview, offset: int) -> bool:
    """Fill ``out`` from a place in the file; whether there were enough bytes."""
    while out:
        count = os.preadv(descriptor, [out], offset)
        if not count:
            return False
        out, offset = out[count:], offset + count
    return True


def _buffer(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """This thread's own buffer; made once, as fresh memory costs more than reading into it."""
    kept = getattr(_own, "buffer", None)
    if kept is None or len(kept) != size:
        kept = _own.buffer = np.empty(size, dtype=np.uint8)
    return kept
