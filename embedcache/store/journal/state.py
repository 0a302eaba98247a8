"""Turns journal records, one after the other, into the state of a store.

Records may come from several files; they are taken in by their numbers, and of two about the same thing the one
with the higher number holds. How the files are read is in ``replay.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import CorruptionError, MismatchError
from embedcache.store import layout
from embedcache.store.journal.file import JournalFile, Place, read_record
from embedcache.store.journal.known import COMMITTED, FAILED, SKIPPED, KnownTiles
from embedcache.store.journal.lines import hint_for
from embedcache.store.journal.packing import unpack_flags
from embedcache.store.journal.record import ShardRecord, read_image
from embedcache.store.journal.snapshot import Snapshot
from embedcache.store.views import Segment, read_segments
from embedcache.volume.volume import ImageRecord

__all__ = ["COMMITTED", "FAILED", "SKIPPED", "StoreState"]

TILES_LIMIT = 2**31
"""Tile numbers above which a journal is refused."""


class StoreState(KnownTiles):
    """What the journal says, replayed: what is known of every tile, and what concerns the whole store.

    Parameters
    ----------
    root : Path
        The store.
    shard_tiles : int
        Tiles of one shard.

    Attributes
    ----------
    images : list of ImageRecord
        The image table of a collection.
    segments : tuple of Segment
        Which rows of the tile table are which views of which planes; none in a store without views.
    announces_views : bool
        Whether the journal has a record of views, be it that none are there yet.
    numerics : list of dict
        The first is the store's; further ones were allowed expressly.
    selections : list of dict
        As they were asked for, in order.
    certificates : list of dict
        Fidelity certificates, oldest first.
    attributes : dict or None
        What the group's attributes must say, less the numerics; ``None`` for a store that records none.
    superseded : dict or None
        The same as before the last change of the source: a writer killed in between leaves the group so.
    former : list of str
        The fingerprint before each change of the source, oldest first.
    intents : dict of int to ShardRecord
        Replacements of shards that were announced but not committed.
    sequence : int
        Highest number of a record.
    snapshot : Snapshot or None
        What the journal was compacted into.
    files : dict of str to JournalFile
        The journal's files, open, by name.
    places : dict of int to Place
        Where the record of a shard stands, unless the snapshot has it.
    """

    def __init__(self, root: Path, shard_tiles: int) -> None:
        super().__init__(shard_tiles)
        self.root = root
        self.images: list[ImageRecord] = []
        self.segments: tuple[Segment, ...] = ()
        self.announces_views = False
        self.numerics: list[dict[str, Any]] = []
        self.selections: list[dict[str, Any]] = []
        self.certificates: list[dict[str, Any]] = []
        self.attributes: dict[str, Any] | None = None
        self.superseded: dict[str, Any] | None = None
        self.former: list[str] = []
        self.intents: dict[int, ShardRecord] = {}
        self.sequence = 0
        self.snapshot: Snapshot | None = None
        self.files: dict[str, JournalFile] = {}
        self.places: dict[int, Place] = {}
        self._intent_sequence: dict[int, int] = {}

    def apply(self, place: Place, record: Mapping[str, Any]) -> None:
        """Take in one record.

        Raises
        ------
        CorruptionError
            When it is malformed or contradicts the others.
        MismatchError
            When it is of a kind that a newer version wrote.
        """
        try:
            self._apply(place, record)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CorruptionError(
                f"{place.path}: the record at byte {place.offset} is malformed: {error!r}.",
                hint=hint_for(self.root),
            ) from error

    def _apply(self, place: Place, record: Mapping[str, Any]) -> None:
        sequence = record.get("seq")
        if not isinstance(sequence, int) or not 0 <= sequence < 2**62:
            raise ValueError("it has no number")
        kind = record.get("kind")
        if kind == "shard":
            self._apply_shard(place, record, sequence)
        elif kind == "intent":
            self._apply_intent(record, sequence)
        elif kind == "table":
            self._apply_table(record)
        elif kind == "views":
            self._apply_views(record)
        elif kind == "selection":
            wanted = unpack_flags(record["wanted"], self.n_tiles)
            self.wanted[: len(wanted)] |= wanted
            self.selections.append(dict(record["selection"]))
        elif kind == "numerics":
            self.numerics.append(dict(record["numerics"]))
        elif kind == "certificate":
            self.certificates.append(dict(record["certificate"]))
        elif kind == "store":
            self.attributes = dict(record["attributes"])
        elif kind == "changed":
            self._apply_changed(record)
        elif kind == "snapshot":
            self._apply_snapshot(record, sequence)
        else:
            raise MismatchError(
                f"{place.path}: a journal record of the unknown kind {kind!r}.",
                hint="A newer embedcache wrote it: pip install --upgrade embedcache",
            )
        self.sequence = max(self.sequence, sequence)

    def _apply_table(self, record: Mapping[str, Any]) -> None:
        n_tiles = record["tiles"]
        if not (isinstance(n_tiles, int) and self.n_tiles <= n_tiles < TILES_LIMIT):
            raise ValueError(f"{n_tiles!r} tiles")
        self._require_rows(n_tiles)
        self.grow(n_tiles)
        before = len(self.images)
        self.images += [read_image(image) for image in record["images"]]
        if self.segments and len(self.images) > before:
            self.segments += (Segment(0, before, len(self.images)),)

    def _apply_views(self, record: Mapping[str, Any]) -> None:
        """Take in that tiles have views: all segments of the table, those that were there before first."""
        segments, n_tiles = read_segments(record["segments"]), record["tiles"]
        if segments[: len(self.segments)] != self.segments:
            raise ValueError("its segments are not those there and further ones")
        if segments:
            if not (isinstance(n_tiles, int) and self.n_tiles <= n_tiles < TILES_LIMIT):
                raise ValueError(f"{n_tiles!r} tiles")
            self._require_rows(n_tiles)
            self.grow(n_tiles)
        self.segments, self.announces_views = segments, True

    def _require_rows(self, n_tiles: int) -> None:
        if not layout.has_rows(self.root, n_tiles):
            raise CorruptionError(
                f"The journal of {self.root} says that the store has {n_tiles:,} tiles, but a part of its tile "
                "table is missing or of another size.",
                hint=hint_for(self.root),
            )

    def _apply_shard(self, place: Place, values: Mapping[str, Any], sequence: int) -> None:
        record = ShardRecord.from_dict(values, self.shard_tiles)
        shard = self._known_shard(record)
        if sequence <= self.shard_sequence[shard]:
            return
        self.set_shard(record, sequence)
        self.places[shard] = place
        if self._intent_sequence.get(shard, sequence) < sequence:
            del self.intents[shard], self._intent_sequence[shard]

    def _apply_intent(self, values: Mapping[str, Any], sequence: int) -> None:
        record = ShardRecord.from_dict(values, self.shard_tiles)
        shard = self._known_shard(record)
        if sequence > max(int(self.shard_sequence[shard]), self._intent_sequence.get(shard, -1)):
            self.intents[shard] = record
            self._intent_sequence[shard] = sequence

    def _known_shard(self, record: ShardRecord) -> int:
        """The record's shard number, once it is known that its slots and its numerics are the store's."""
        slots = [*record.stored.slots[-1:].tolist(), *record.skipped, *record.failed]
        last = max(slots, default=0)
        if record.shard * self.shard_tiles + last >= self.n_tiles:
            raise ValueError(f"shard {record.shard}, slot {last} is not there")
        self._require_numerics(record)
        return record.shard

    def _require_numerics(self, record: ShardRecord) -> None:
        """Refuse a record of a shard that was made under numerics which no record tells."""
        if record.numerics is not None and record.numerics >= len(self.numerics):
            raise ValueError(
                f"shard {record.shard} was made under numerics {record.numerics}, of {len(self.numerics)}"
            )

    def _apply_changed(self, values: Mapping[str, Any]) -> None:
        if self.attributes is None:
            raise ValueError("no record says what the store was before")
        stale = unpack_flags(values["stale"], self.n_tiles)
        for index, image in values["images"]:
            if not 0 <= index < len(self.images):
                raise ValueError(f"there is no image {index}")
            self.images[index] = read_image(image)
        spec = dict(self.attributes["spec"])
        if values["volume"] is not None:
            spec["volume"] = dict(values["volume"])
        self.superseded = self.attributes
        self.former.append(str(self.attributes["fingerprint"]))
        self.attributes = {**self.attributes, "spec": spec, "fingerprint": values["fingerprint"]}
        self.take_back(stale)

    def _apply_snapshot(self, values: Mapping[str, Any], sequence: int) -> None:
        snapshot = Snapshot.open(self.root, values, self.shard_tiles, self._require_rows)
        self.snapshot = snapshot
        columns = snapshot.columns
        self.flags, self.stale = columns.flags, columns.stale
        self.crc, self.scale_crc = columns.crc, columns.scale_crc
        self.wanted, self.reason = columns.wanted, columns.reason
        self.shard_sequence, self.shard_bytes = columns.shard_sequence, columns.shard_bytes
        self.reasons, self.images = snapshot.reasons, snapshot.images
        self.numerics, self.selections = snapshot.numerics, snapshot.selections
        self.certificates, self.former = snapshot.certificates, snapshot.former
        self.sequence = sequence

    def shard_record(self, shard: int) -> ShardRecord | None:
        """The record that holds for a shard, read again from its file; ``None`` when there is none.

        Its tiles that count no longer are in its ``stale``.
        """
        place = self.places.get(shard)
        if place is not None:
            record = ShardRecord.from_dict(read_record(place), self.shard_tiles)
        elif (
            self.snapshot is not None and 0 <= shard < len(self.shard_sequence) and self.shard_sequence[shard]
        ):
            record = self.snapshot.shard_record(shard)
        else:
            return None
        tiles = slice(shard * self.shard_tiles, (shard + 1) * self.shard_tiles)
        still = self.flags[tiles] == SKIPPED
        skipped = {slot: reason for slot, reason in record.skipped.items() if still[slot]}
        return replace(record, skipped=skipped).without(np.flatnonzero(self.stale[tiles]))

    def accepted(self, tile: int) -> set[tuple[int, int | None]]:
        """Pairs of crc and scale crc that a committed tile's bytes may have; ``None`` where there are no scales.

        The recorded pair, and that of a pending replacement; a pair is of one record, never mixed.
        """
        shard, slot = divmod(tile, self.shard_tiles)
        scale = None if self.scale_crc is None else int(self.scale_crc[tile])
        accepted: set[tuple[int, int | None]] = {(int(self.crc[tile]), scale)}
        intent = self.intents.get(shard)
        if intent is not None:
            for at in np.flatnonzero(intent.slots == slot):
                scales = intent.scale_crcs
                accepted.add((int(intent.crc[at]), None if scales is None else int(scales[at])))
        return accepted
