"""What coordinator and workers tell each other: small values that pickle, never arrays, weights or pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedcache.encode.options import EncodeOptions
from embedcache.errors import EmbedcacheError

STEPS, STAGED, SAID = "steps", "staged", "said"
"""Kinds of events that a worker sends while it works on a task."""


@dataclass(frozen=True)
class Briefing:
    """What a worker needs to know of the run before its first task.

    Parameters
    ----------
    topic : str
        Name of the run, under which its events are sent.
    options : EncodeOptions
        The wishes, with absolute paths; for one process.
    store : str
        Path of the store.
    fingerprint : str
        Of the store.
    checkpoint : str
        Where the weights are: a file, ``random:SEED`` or a published name.
    threads : int or None
        CPU threads of each encoder; None: a worker's share of its machine's cores.
    tiles : int
        Missing tiles, of all workers together: what the numerics are decided by does not depend on their number.
    local : bool
        Whether the workers belong to this run alone, on the coordinator's machine.
    """

    topic: str
    options: EncodeOptions
    store: str
    fingerprint: str
    checkpoint: str
    threads: int | None
    tiles: int
    local: bool


@dataclass(frozen=True)
class Ready:
    """A worker that has loaded volume, weights and encoder.

    Parameters
    ----------
    host, device : str
        Where it runs, and on what.
    numerics : dict
        Those of its encoder.
    seconds : float
        What loading took.
    neighbours, cores : int
        Workers on its machine, itself among them; cores that they may use.
    """

    host: str
    device: str
    numerics: dict[str, Any]
    seconds: float
    neighbours: int
    cores: int


@dataclass(frozen=True)
class Refused:
    """A worker that cannot take part.

    Parameters
    ----------
    host : str
        Where it runs.
    error : EmbedcacheError
        Why.
    """

    host: str
    error: EmbedcacheError


@dataclass(frozen=True)
class Work:
    """One attempt at a task: tiles of whole shards.

    Parameters
    ----------
    attempt : int
        Number of the attempt; no other one, in any run, has it, so that it also names the files that are staged.
    numbers : tuple of int
        Tile numbers, ascending.
    """

    attempt: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Staged:
    """A shard that a worker has staged, and what of the run's tiles is in it.

    Parameters
    ----------
    attempt, place : int
        Of which attempt it is the how-manieth; so it is known when it arrives twice.
    shard : dict
        ``StagedShard`` as JSON values.
    encoded, skipped : tuple of int
        Tile numbers.
    failed : dict of int to str
        Reasons.
    numerics : dict
        Under which they were encoded.
    """

    attempt: int
    place: int
    shard: Mapping[str, Any]
    encoded: tuple[int, ...]
    skipped: tuple[int, ...]
    failed: dict[int, str]
    numerics: dict[str, Any]

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of the run's tiles that are in it."""
        return *self.encoded, *self.skipped, *self.failed


@dataclass(frozen=True)
class Counts:
    """What a worker counted and measured while it did a task: see ``EncodeRun``."""

    encoder_calls: int
    identical: int
    source_chunks_read: int
    source_bytes_read: int
    seconds: dict[str, float]
    waits: dict[str, float]


@dataclass(frozen=True)
class Done:
    """How an attempt ended.

    Parameters
    ----------
    staged : tuple of Staged
        All that it staged, whether or not it was told before.
    counts : Counts
        What was counted and measured meanwhile.
    error : EmbedcacheError or None
        Why it did not come to its end.
    """

    staged: tuple[Staged, ...]
    counts: Counts
    error: EmbedcacheError | None = None


class NotReadyError(EmbedcacheError):
    """A task came to a process that has loaded nothing: it took the place, and the address, of one that died."""


@dataclass
class Outcome:
    """What workers did together.

    Parameters
    ----------
    encoded, bytes_written : int
        Tiles committed; bytes of their shard files.
    encoder_calls, identical, source_chunks_read, source_bytes_read : int
        As an ``EncodeRun`` counts them.
    failed : dict of int to str
        Tiles that could not be encoded, and why.
    seconds, waits : dict of str to float
        By stage, and of encoders that waited; of all workers.
    workers : int
        How many took part at the same time.
    device : str
        On what the first of them computed.
    """

    encoded: int = 0
    bytes_written: int = 0
    encoder_calls: int = 0
    identical: int = 0
    source_chunks_read: int = 0
    source_bytes_read: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    device: str = ""

    def add(self, counts: Counts) -> None:
        """Take in what a worker counted."""
        self.encoder_calls += counts.encoder_calls
        self.identical += counts.identical
        self.source_chunks_read += counts.source_chunks_read
        self.source_bytes_read += counts.source_bytes_read
        for mine, theirs in ((self.seconds, counts.seconds), (self.waits, counts.waits)):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0.0) + value

    def spend(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
