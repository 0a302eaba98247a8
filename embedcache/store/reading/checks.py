"""Turns reads of an embedding into the answer whether its checksum is still to be compared in this process.

"Once" means once per embedding and process: a bit for each embedding of a shard file. The file is known by its
place in the journal and by what the system says of it, so that a replaced one is checked again.
"""

from __future__ import annotations

import threading
from typing import Literal, get_args

from embedcache.errors import ConfigError

Check = Literal["always", "once", "never"]
"""When an embedding is compared with its checksums: on every read, on its first in this process, or never."""

CHECKS: tuple[Check, ...] = get_args(Check)

Identity = tuple[int, ...]

_lock = threading.Lock()
_shards: dict[tuple[str, int], tuple[Identity, bytearray]] = {}


def check_word(word: str) -> Check:
    """Return ``word`` when it is one of :data:`CHECKS`.

    Raises
    ------
    ConfigError
        When it is none.
    """
    for known in CHECKS:
        if word == known:
            return known
    raise ConfigError(f"embeddings are checked {', '.join(CHECKS)}; found {word!r}.")


def checked_slots(fingerprint: str, shard: int, identity: Identity, slots: int) -> bytearray:
    """Which embeddings of a shard file were compared in this process: 0 or 1 per slot, to be set by the reader.

    Parameters
    ----------
    fingerprint : str
        Of the store.
    shard, slots : int
        Number of the shard and how many embeddings it has room for.
    identity : tuple of int
        Of the file and of its record; with another one nothing counts as compared.
    """
    with _lock:
        kept = _shards.get((fingerprint, shard))
        if kept is None or kept[0] != identity or len(kept[1]) != slots:
            kept = _shards[fingerprint, shard] = (identity, bytearray(slots))
        return kept[1]
