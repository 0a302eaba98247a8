"""Turns what records say of tiles and shards into flat arrays over their numbers, which grow with the store."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.store.journal.record import ShardRecord

COMMITTED, SKIPPED, FAILED = 1, 2, 3
"""Values of :attr:`KnownTiles.flags`; 0 is a tile of which nothing is known."""


class KnownTiles:
    """What is known of every tile and shard.

    Attributes
    ----------
    flags : ndarray of uint8, shape (N,)
        0, COMMITTED, SKIPPED or FAILED.
    stale : ndarray of bool, shape (N,)
        Tiles that their shard's file holds but that count no longer.
    crc : ndarray of uint32, shape (N,)
        Recorded CRC-32C of committed tiles.
    scale_crc : ndarray of uint32, shape (N,), or None
        Recorded CRC-32C of committed tiles' rows of scales; ``None`` until a record has them.
    wanted : ndarray of bool, shape (N,)
        Union of all selections.
    reason : ndarray of uint32, shape (N,)
        Of skipped and failed tiles: 1 + the place of the reason in ``reasons``.
    reasons : list of str
        Each reason once.
    shard_sequence, shard_bytes : ndarray of int64, shape (shards,)
        Number of the record that holds for a shard (0: none), and the size of its file.
    """

    def __init__(self, shard_tiles: int) -> None:
        self.shard_tiles = shard_tiles
        self.flags = np.zeros(0, dtype=np.uint8)
        self.stale = np.zeros(0, dtype=np.bool_)
        self.crc = np.zeros(0, dtype=np.uint32)
        self.scale_crc: npt.NDArray[np.uint32] | None = None
        self.wanted = np.zeros(0, dtype=np.bool_)
        self.reason = np.zeros(0, dtype=np.uint32)
        self.reasons: list[str] = []
        self.shard_sequence = np.zeros(0, dtype=np.int64)
        self.shard_bytes = np.zeros(0, dtype=np.int64)
        self._reason_codes: dict[str, int] = {}

    @property
    def n_tiles(self) -> int:
        """Tile numbers that the journal speaks of."""
        return len(self.flags)

    @property
    def failed(self) -> dict[int, str]:
        """Failed tiles, with the reason."""
        return self._with_reasons(FAILED)

    @property
    def skipped(self) -> dict[int, str]:
        """Skipped tiles, with the reason."""
        return self._with_reasons(SKIPPED)

    def _with_reasons(self, flag: int) -> dict[int, str]:
        numbers = np.flatnonzero(self.flags == flag)
        codes = self.reason[numbers].tolist()
        return {number: self.reasons[code - 1] for number, code in zip(numbers.tolist(), codes, strict=True)}

    def grow(self, n_tiles: int) -> None:
        """Make room for tile numbers of which nothing is known yet."""
        shards = -(-n_tiles // self.shard_tiles)
        self.flags = _longer(self.flags, n_tiles)
        self.stale = _longer(self.stale, n_tiles)
        self.crc = _longer(self.crc, n_tiles)
        if self.scale_crc is not None:
            self.scale_crc = _longer(self.scale_crc, n_tiles)
        self.wanted = _longer(self.wanted, n_tiles)
        self.reason = _longer(self.reason, n_tiles)
        self.shard_sequence = _longer(self.shard_sequence, shards)
        self.shard_bytes = _longer(self.shard_bytes, shards)

    def set_shard(self, record: ShardRecord, sequence: int) -> None:
        """Take in the record that holds for a shard from now on."""
        self.shard_sequence[record.shard] = sequence
        self.shard_bytes[record.shard] = record.size
        tiles = slice(record.shard * self.shard_tiles, (record.shard + 1) * self.shard_tiles)
        flags, stale, crc, reason = (
            np.zeros_like(column[tiles]) for column in (self.flags, self.stale, self.crc, self.reason)
        )
        flags[record.slots] = COMMITTED
        crc[record.slots] = record.crc
        if record.scale_crcs is not None:
            if self.scale_crc is None:
                self.scale_crc = np.zeros(self.n_tiles, dtype=np.uint32)
            self.scale_crc[tiles][record.slots] = record.scale_crcs
        if record.stale is not None:
            stale[record.stale.slots] = True
        for flag, reasons in ((SKIPPED, record.skipped), (FAILED, record.failed)):
            for slot, text in reasons.items():
                flags[slot], reason[slot] = flag, self._reason_code(text)
        # each in one step: other threads may be reading
        self.flags[tiles], self.stale[tiles], self.crc[tiles], self.reason[tiles] = flags, stale, crc, reason

    def take_back(self, tiles: npt.NDArray[np.bool_]) -> None:
        """Make committed ones of these tiles stale; those left out on purpose are so no longer."""
        gone = np.flatnonzero(tiles & (self.flags[: len(tiles)] == COMMITTED))
        filled = np.flatnonzero(tiles & (self.flags[: len(tiles)] == SKIPPED))
        self.flags[gone] = 0
        self.stale[gone] = True
        self.flags[filled] = self.reason[filled] = 0

    def _reason_code(self, text: str) -> int:
        if len(self._reason_codes) < len(self.reasons):  # those of a snapshot
            self._reason_codes = {reason: at for at, reason in enumerate(self.reasons, start=1)}
        code = self._reason_codes.setdefault(text, len(self.reasons) + 1)
        if code > len(self.reasons):
            self.reasons.append(text)
        return code


def _longer(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    longer = np.zeros(length, dtype=array.dtype)
    longer[: len(array)] = array
    return longer
