"""Turns what a verification looked at and found into values: how much was asked for, and the account of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import EXIT_CORRUPTION, EXIT_DONE, InputError
from embedcache.store.care.verify_files import Problem
from embedcache.store.care.verify_shard import ShardVerdict
from embedcache.store.store import EmbeddingStore

NAMED_TILES = 1000
"""Tiles that one problem names at most in JSON; the counts are of all."""


@dataclass(frozen=True)
class Scope:
    """How much is verified.

    Parameters
    ----------
    share : float
        Of the shards that hold embeddings, chosen at random; 1 is all.
    seconds : float, optional
        After which no further shard is begun; shards are then taken in random order.
    seed : int, optional
        Of the choice; by default another one each time, so that repeated checks see everything in the end.
    digests : bool
        Compare each file's SHA-256 as well, which tells what was changed on purpose with its checksums kept.
    """

    share: float = 1.0
    seconds: float | None = None
    seed: int | None = None
    digests: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(
                f"A share of {self.share:g} of a store cannot be verified; more than 0 % to 100 %."
            )
        if self.seconds is not None and self.seconds <= 0:
            raise InputError(f"A duration of {self.seconds:g} s; expected more than 0.")


@dataclass(frozen=True)
class Verification:
    """What was found.

    Parameters
    ----------
    store : Path
        The folder.
    ok, corrupt, missing : int
        Recorded embeddings whose bytes are right, are wrong, or are not there.
    shards_checked, shards_total : int
        Of the shards that hold embeddings.
    bytes : int
        Read from shard files.
    seconds : float
        Wall time.
    seed : int
        Of the choice of shards.
    problems : tuple of Problem
        Everything that is not as it was written.
    litter : tuple of str
        What the next writer or ``gc`` removes; no damage.
    unclaimed : tuple of str
        Files that no record speaks of and nothing removes.
    broken : dict of int to ShardVerdict
        The shards that are not intact.
    verified : ndarray of int64
        Numbers of the tiles that were looked at.
    opened : EmbeddingStore or None
        The store; None when it does not even open.
    wanted, not_encoded : int
        Tiles that some selection asked for, and those of them of which the journal says nothing: never encoded, or
        their records were lost. Both only as far as the journal goes.
    """

    store: Path
    ok: int = 0
    corrupt: int = 0
    missing: int = 0
    shards_checked: int = 0
    shards_total: int = 0
    bytes: int = 0
    seconds: float = 0.0
    seed: int = 0
    problems: tuple[Problem, ...] = ()
    litter: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
    broken: dict[int, ShardVerdict] = field(default_factory=dict)
    verified: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    opened: EmbeddingStore | None = None
    wanted: int = 0
    not_encoded: int = 0

    @property
    def checked(self) -> int:
        """Recorded embeddings that were looked at."""
        return self.ok + self.corrupt + self.missing

    @property
    def complete(self) -> bool:
        """Whether all there is was looked at."""
        return self.opened is not None and self.shards_checked == self.shards_total

    @property
    def exit_code(self) -> int:
        """0, or 4 when something is damaged."""
        return EXIT_CORRUPTION if self.problems else EXIT_DONE

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "store": str(self.store),
            "checked": self.checked,
            "ok": self.ok,
            "corrupt": self.corrupt,
            "missing": self.missing,
            "tiles_wanted": self.wanted,
            "tiles_not_encoded": self.not_encoded,
            "shards_checked": self.shards_checked,
            "shards_total": self.shards_total,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "complete": self.complete,
            "seed": self.seed,
            "problems": [problem.to_dict(NAMED_TILES) for problem in self.problems],
            "litter": list(self.litter),
            "unclaimed": list(self.unclaimed),
        }
