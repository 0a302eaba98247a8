"""Turns what a volume asked of its server into a few counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fetched:
    """What was asked of a server so far.

    Parameters
    ----------
    requests : int
        Files or parts of files asked for; further tries are not counted.
    bytes : int
        Of what came, metadata included.
    from_disk : int
        Chunks that this machine had kept.
    missing : int
        Chunks that the server does not have.
    retries : int
        Further tries.
    """

    requests: int = 0
    bytes: int = 0
    from_disk: int = 0
    missing: int = 0
    retries: int = 0
