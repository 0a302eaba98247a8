"""Turns what the scheduler says of its workers into members of a run: ready, or left out by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from distributed import Client

from embedcache.encode.distributed.members import Attempt, Member, Standing
from embedcache.encode.distributed.messages import Briefing, Outcome, Ready, Refused
from embedcache.encode.distributed.worker import EncodePlugin
from embedcache.encode.sizes import readable_bytes
from embedcache.errors import EmbedcacheError, InputError, MismatchError
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore, StoreWriter

LOOK_SECONDS = 1.0
"""How often it is looked who is there."""

WAITING_SECONDS = 30.0
"""How often it is said that no worker is there."""

LOADING_DEATHS = 3
"""So many workers may die while they load."""

MODEL_BYTES = 8 << 30
"""What an encoder and the shards under work may take beside the pixels that are kept."""


class Roster:
    """Who takes part.

    Parameters
    ----------
    client : Client
        Of the workers.
    briefing : Briefing
        What they are told first.
    store, writer
        For the numerics: those of the store, or those that the first worker decides.
    outcome : Outcome
        Where it is noted what they are.
    progress : Progress
        Told who is left out.

    Attributes
    ----------
    numerics : dict or None
        What workers must compute under; None while the first is to decide, or where others are allowed.
    """

    def __init__(
        self,
        client: Client,
        briefing: Briefing,
        store: EmbeddingStore,
        writer: StoreWriter,
        outcome: Outcome,
        progress: Progress,
    ) -> None:
        self._client, self._briefing, self._writer = client, briefing, writer
        self._outcome, self._progress = outcome, progress
        self.numerics = None if briefing.options.allow_numerics else store.numerics
        self._members: dict[str, Member] = {}
        self._deaths = 0
        self._looked = 0.0
        self._seen = time.monotonic()
        self._warned = False

    def register(self) -> None:
        """Give every worker its post, those that come later too.

        Raises
        ------
        InputError
            When they cannot even load this package.
        """
        try:
            self._client.register_plugin(EncodePlugin(self._briefing))
        except Exception as error:
            raise InputError(
                f"The workers cannot take part: {type(error).__name__}: {error}.",
                hint="Start scheduler, workers and embedcache from one environment.",
            ) from error

    def leave(self) -> None:
        """Take the posts away: models and volumes are let go of."""
        self._client.unregister_worker_plugin(self._briefing.topic)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def find(self, address: str) -> Member | None:
        """The member at an address."""
        return self._members.get(address)

    def ready(self) -> list[Member]:
        """Those that can be given work."""
        return [member for member in self if member.standing is Standing.READY]

    def attempt(self, number: int) -> tuple[Member, Attempt] | None:
        """Who has an attempt, if it was not dropped."""
        return next(
            ((member, one) for member in self for one in member.attempts if one.number == number), None
        )

    def attempts(self) -> list[Attempt]:
        """All that is given out."""
        return [attempt for member in self for attempt in member.attempts]

    def look(self) -> list[Member]:
        """See which workers came; returns those that went."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        there = self._workers_there()
        gone = [member for member in self if member.address not in there]
        for address, facts in there.items():
            if address not in self._members:
                self._members[address] = Member(address, str(facts.get("host", address)))
                self._warn_of_limit(self._members[address], int(facts.get("memory_limit") or 0))
        if any(member.standing is not Standing.REFUSED for member in self):
            self._seen = now
        elif now - self._seen > WAITING_SECONDS:
            self._seen = now
            self._progress.say("No worker is there; waiting for one.")
        return gone

    def is_there(self, member: Member) -> bool:
        """Whether the scheduler still knows a worker."""
        return member.address in self._workers_there()

    def lose(self, member: Member) -> None:
        """Strike a worker off that is gone.

        Raises
        ------
        InputError
            When workers die again and again before they are ready.
        """
        if self._members.pop(member.address, None) is None or member.standing is not Standing.LOADING:
            return
        self._deaths += 1
        if self._deaths >= LOADING_DEATHS:
            raise InputError(
                f"Workers die while they load the model and the volume, the last on {member.host}.",
                hint="The memory of that machine may be too small for so many workers; see its logs.",
            )

    def to_load(self) -> Iterator[tuple[Member, int]]:
        """New workers, and how many share the machine of each; one alone while the numerics are to be decided."""
        decides = self.numerics is None and not self._briefing.options.allow_numerics
        for member in self:
            loading = any(other.standing is Standing.LOADING for other in self)
            if member.standing is not Standing.NEW or (decides and loading):
                continue
            yield member, sum(other.host == member.host for other in self)

    def loaded(self, member: Member, answer: Ready | Refused) -> None:
        """Take in what came of loading.

        Raises
        ------
        EmbedcacheError
            When no worker that is there can take part: why the last could not.
        """
        if isinstance(answer, Ready):
            try:
                allow = self._briefing.options.allow_numerics
                decided = self._writer.decide_numerics(answer.numerics, allow=allow)
                self.numerics = None if allow else decided
            except MismatchError as error:
                answer = Refused(answer.host, error)
        if isinstance(answer, Refused):
            self._refuse(member, answer.error)
            return
        member.standing = Standing.READY
        self._warn_of_threads(answer)
        self._outcome.workers = max(self._outcome.workers, len(self.ready()))
        self._outcome.device = self._outcome.device or answer.device
        self._outcome.spend("prepare", answer.seconds)

    def _refuse(self, member: Member, error: EmbedcacheError) -> None:
        member.standing = Standing.REFUSED
        if all(other.standing is Standing.REFUSED for other in self):
            raise error
        self._progress.say(f"{member.address} is left out. {error}")

    def _warn_of_threads(self, ready: Ready) -> None:
        threads, cores = int(ready.numerics.get("threads", 0)), ready.cores
        if threads * ready.neighbours > cores and not self._outcome.workers:
            self._progress.say(
                f"{ready.neighbours} workers of {threads} threads share {cores} cores of {ready.host}, as this "
                "store's numerics say. A new store with --threads 1 would be faster."
            )

    def _warn_of_limit(self, member: Member, limit: int) -> None:
        """A nanny stops a worker that comes near its limit, and kills it soon after; models are not spilled."""
        needed = self._briefing.options.read_memory + MODEL_BYTES
        if 0 < limit < needed and not self._warned:
            self._warned = True
            self._progress.say(
                f"The memory limit of {member.address} is {readable_bytes(limit)}; a worker may need "
                f"{readable_bytes(needed)} and is stopped then. Start workers with --memory-limit 0."
            )

    def _workers_there(self) -> dict[str, dict[str, Any]]:
        try:
            # not `scheduler_info()`: what it returns may have been replaced by a shortened list meanwhile
            scheduler: Any = self._client.scheduler
            return dict(self._client.sync(scheduler.identity, n_workers=-1)["workers"])
        except Exception as error:
            raise InputError(
                f"The scheduler {self._client.scheduler} no longer answers ({type(error).__name__}: {error}).",
                hint="What was committed stays; run the same command again.",
            ) from error
