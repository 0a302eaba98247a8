"""Turns a store's counts into what ``status`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StoreStatus:
    """What a store holds.

    ``tiles_total`` counts the numbers that have a tile; ``tiles_missing`` those wanted that are neither there nor
    skipped, failed ones among them; ``bytes`` is the size of the shard files; ``complete`` means that something
    is wanted and nothing of it is missing; ``views`` are those that its tiles may be in.
    """

    store: str
    fingerprint: str
    embedding_space: str
    spec: dict[str, Any]
    tiles_total: int
    tiles_wanted: int
    tiles_committed: int
    tiles_skipped: int
    tiles_failed: int
    tiles_missing: int
    bytes: int
    complete: bool
    views: list[int]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
