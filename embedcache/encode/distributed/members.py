"""The workers as the coordinator sees them: who is there, what each of them has to do."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from embedcache.encode.distributed.backlog import Group

WINDOW = 2
"""Tasks that a worker has at a time: one under work, one that waits for it."""


class Standing(Enum):
    """How far a worker has come."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"


@dataclass
class Attempt:
    """A task that a worker has.

    Parameters
    ----------
    number : int
        Also the tag of the files that it stages.
    groups : tuple of Group
        What is to be done, in order.
    future : Future
        Of its end.
    steps : int
        Tiles that it has told of.
    places : set of int
        What it has staged that was taken in: see ``Staged``.
    done : set of int
        Its tiles that are committed, skipped or failed; nobody asks for them once the attempt has ended.
    """

    number: int
    groups: tuple[Group, ...]
    future: Any
    steps: int = 0
    places: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)


@dataclass
class Member:
    """One worker process.

    Parameters
    ----------
    address, host : str
        Where it is.
    standing : Standing
        How far it has come.
    loading : Future or None
        Of its getting ready.
    attempts : deque of Attempt
        The first is under work.
    """

    address: str
    host: str
    standing: Standing = Standing.NEW
    loading: Any = None
    attempts: deque[Attempt] = field(default_factory=deque)
