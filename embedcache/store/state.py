"""Turns journal records into what is known of every tile: flat arrays over the tile numbers.

Records may come from several files; of two about the same thing the one with the higher number holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, MismatchError
from embedcache.store.journal import Place, journal_files, read_record, read_records
from embedcache.store.record import ShardRecord, unpack_flags
from embedcache.volume.volume import ImageRecord

COMMITTED, SKIPPED, FAILED = 1, 2, 3
"""Values of :attr:`StoreState.flags`; 0 is a tile of which nothing is known."""

TILES_LIMIT = 2**31
"""Tile numbers above which a journal is refused."""


class StoreState:
    """What the journal says, replayed.

    Attributes
    ----------
    flags : ndarray of uint8, shape (N,)
        0, COMMITTED, SKIPPED or FAILED.
    crc : ndarray of uint32, shape (N,)
        Recorded CRC-32C of committed tiles.
    wanted : ndarray of bool, shape (N,)
        Union of all selections.
    failed : dict of int to str
        Tile number to reason.
    images : list of ImageRecord
        The image table of a collection.
    numerics : list of dict
        The first is the store's; further ones were allowed expressly.
    selections : list of dict
        As they were asked for, in order.
    intents : dict of int to ShardRecord
        Replacements of shards that were announced but not committed.
    sequence : int
        Highest number of a record.
    """

    def __init__(self, shard_tiles: int) -> None:
        self.shard_tiles = shard_tiles
        self.flags = np.zeros(0, dtype=np.uint8)
        self.crc = np.zeros(0, dtype=np.uint32)
        self.wanted = np.zeros(0, dtype=np.bool_)
        self.failed: dict[int, str] = {}
        self.images: list[ImageRecord] = []
        self.numerics: list[dict[str, Any]] = []
        self.selections: list[dict[str, Any]] = []
        self.intents: dict[int, ShardRecord] = {}
        self.sequence = 0
        self.shard_sequence = np.zeros(0, dtype=np.int64)
        self.shard_bytes = np.zeros(0, dtype=np.int64)
        self._places: dict[int, Place] = {}
        self._intent_sequence: dict[int, int] = {}

    @classmethod
    def read(cls, folder: Path, shard_tiles: int) -> StoreState:
        """Replay all files of a journal folder.

        Raises
        ------
        CorruptionError
            When a record is corrupt or contradicts the others.
        MismatchError
            When a record is of a kind that a newer version wrote.
        """
        state = cls(shard_tiles)
        for path in journal_files(folder):
            for place, record in read_records(path):
                try:
                    state.apply(place, record)
                except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                    raise CorruptionError(
                        f"{path}: the record at byte {place.offset} is malformed: {error!r}."
                    ) from error
        return state

    @property
    def n_tiles(self) -> int:
        """Tile numbers that the journal speaks of."""
        return len(self.flags)

    def apply(self, place: Place, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        sequence = record.get("seq")
        if not isinstance(sequence, int):
            raise CorruptionError(f"{place.path}: the record at byte {place.offset} has no number.")
        kind = record.get("kind")
        if kind == "shard":
            self._apply_shard(place, record, sequence)
        elif kind == "intent":
            self._apply_intent(record, sequence)
        elif kind == "table":
            self._apply_table(record)
        elif kind == "selection":
            wanted = unpack_flags(record["wanted"], self.n_tiles)
            self.wanted[: len(wanted)] |= wanted
            self.selections.append(record["selection"])
        elif kind == "numerics":
            self.numerics.append(record["numerics"])
        else:
            raise MismatchError(
                f"{place.path}: a journal record of the unknown kind {kind!r}.",
                hint="A newer embedcache wrote it: pip install --upgrade embedcache",
            )
        self.sequence = max(self.sequence, sequence)

    def _apply_table(self, record: Mapping[str, Any]) -> None:
        n_tiles = record["tiles"]
        if not (isinstance(n_tiles, int) and self.n_tiles <= n_tiles < TILES_LIMIT):
            raise CorruptionError(f"The journal says that the store has {n_tiles!r} tiles.")
        shards = -(-n_tiles // self.shard_tiles)
        self.flags = _longer(self.flags, n_tiles)
        self.crc = _longer(self.crc, n_tiles)
        self.wanted = _longer(self.wanted, n_tiles)
        self.shard_sequence = _longer(self.shard_sequence, shards)
        self.shard_bytes = _longer(self.shard_bytes, shards)
        self.images += [ImageRecord.from_dict(image) for image in record["images"]]

    def _apply_shard(self, place: Place, values: Mapping[str, Any], sequence: int) -> None:
        record = ShardRecord.from_dict(values, self.shard_tiles)
        shard = self._known_shard(record)
        if sequence <= self.shard_sequence[shard]:
            return
        self.shard_sequence[shard] = sequence
        self.shard_bytes[shard] = record.size
        self._places[shard] = place
        base = shard * self.shard_tiles
        tiles = slice(base, base + self.shard_tiles)
        if self.failed and (self.flags[tiles] == FAILED).any():
            for slot in range(self.shard_tiles):
                self.failed.pop(base + slot, None)
        flags = self.flags[tiles]
        flags[:] = 0
        flags[record.slots] = COMMITTED
        self.crc[tiles][record.slots] = record.crc
        if record.skipped:
            flags[list(record.skipped)] = SKIPPED
        for slot, reason in record.failed.items():
            flags[slot] = FAILED
            self.failed[base + slot] = reason
        if self._intent_sequence.get(shard, sequence) < sequence:
            del self.intents[shard], self._intent_sequence[shard]

    def _apply_intent(self, values: Mapping[str, Any], sequence: int) -> None:
        record = ShardRecord.from_dict(values, self.shard_tiles)
        shard = self._known_shard(record)
        if sequence > max(int(self.shard_sequence[shard]), self._intent_sequence.get(shard, -1)):
            self.intents[shard] = record
            self._intent_sequence[shard] = sequence

    def _known_shard(self, record: ShardRecord) -> int:
        """The record's shard number, once it is known that all its slots are tile numbers of the store."""
        shard, slots = record.shard, [*record.slots[-1:], *record.skipped, *record.failed]
        last = max(slots, default=0)
        if not (isinstance(shard, int) and shard >= 0 and shard * self.shard_tiles + last < self.n_tiles):
            raise CorruptionError(f"The journal speaks of shard {shard!r}, slot {last}, which is not there.")
        return shard

    def shard_record(self, shard: int) -> ShardRecord | None:
        """The record that holds for a shard, read again from its file; ``None`` when there is none."""
        place = self._places.get(shard)
        return None if place is None else ShardRecord.from_dict(read_record(place), self.shard_tiles)

    def accepted_crcs(self, tile: int) -> set[int]:
        """CRCs that a committed tile's bytes may have: the recorded one, and that of a pending replacement."""
        shard, slot = divmod(tile, self.shard_tiles)
        accepted = {int(self.crc[tile])}
        intent = self.intents.get(shard)
        if intent is not None:
            accepted |= {int(value) for value in intent.crc[intent.slots == slot]}
        return accepted


def _longer(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    longer = np.zeros(length, dtype=array.dtype)
    longer[: len(array)] = array
    return longer
