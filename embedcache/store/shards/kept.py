"""Turns what is committed of a shard into the bytes that go over, unchanged, into the shard's next file.

Where a chunk lies follows from the record, not from the index in the file: a damaged index costs no chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.rows import TileRow
from embedcache.store.shards.scales import ShardScales, read_scales
from embedcache.store.shards.shard import Form, ShardFile


class KeptTiles:
    """The chunks and scales that a shard has now; nothing is opened before the first is asked for.

    Parameters
    ----------
    root : Path
        The store.
    form : Form
        Of its embeddings.
    shard_tiles : int
        Slots of a shard.
    records : sequence of ShardRecord
        One of these is what the file is: the shard's record and, where a replacement is pending, that one.
    """

    def __init__(self, root: Path, form: Form, shard_tiles: int, records: Sequence[ShardRecord]) -> None:
        self._root, self._form, self._shard_tiles = root, form, shard_tiles
        self._records = records

    @cached_property
    def _file(self) -> ShardFile:
        return ShardFile(self._root, self._records[0].shard, self._form, self._shard_tiles)

    @cached_property
    def _indexes(self) -> list[npt.NDArray[np.uint64]]:
        return [record.index(self._shard_tiles, self._form) for record in self._records]

    @cached_property
    def _scales(self) -> ShardScales:
        return read_scales(self._root, self._records[0].shard, self._shard_tiles)

    def payload(self, slot: int, row: TileRow) -> memoryview:
        """The bytes of a committed embedding.

        Raises
        ------
        CorruptionError
            When they are not the recorded ones.
        """
        out = bytearray(self._form.payload_bytes)
        reason = f"slot {slot} of {self._file.path} differs from its record"
        for index in self._indexes:
            try:
                if self._file.read_at(int(index[slot, 0]), memoryview(out)) == row.crc:
                    return memoryview(out)
            except CorruptionError as error:
                reason = error.message
        raise CorruptionError(reason)

    def scales(self, slot: int, row: TileRow) -> npt.NDArray[np.float32]:
        """The scales of a committed embedding.

        Raises
        ------
        CorruptionError
            When they are not the recorded ones.
        """
        if not self.has_scales(slot, row):
            raise CorruptionError(f"the scales of slot {slot} differ from their record")
        rows: npt.NDArray[np.float32] = self._scales.rows
        return np.asarray(rows[slot])

    def has_scales(self, slot: int, row: TileRow) -> bool:
        """Whether the scales of a committed embedding are the recorded ones; always, where none are recorded."""
        return row.scale_crc is None or self._scales.crc(slot) == row.scale_crc
