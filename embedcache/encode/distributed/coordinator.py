"""Turns a plan into committed shards by giving tasks to workers and publishing what they stage.

One thread, one queue: what workers tell and what becomes of their tasks comes in through it; nothing else changes
what the coordinator knows, and nothing but the coordinator changes the store.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from distributed import Client

from embedcache.encode.distributed.backlog import Backlog, Group
from embedcache.encode.distributed.calls import Calls
from embedcache.encode.distributed.members import WINDOW, Attempt, Member, Standing
from embedcache.encode.distributed.messages import (
    SAID,
    STAGED,
    STEPS,
    Briefing,
    Done,
    Outcome,
    Ready,
    Refused,
    Work,
)
from embedcache.encode.distributed.onward import Onward
from embedcache.encode.distributed.publishing import Publisher
from embedcache.encode.distributed.roster import Roster
from embedcache.encode.distributed.worker import do_work, get_ready
from embedcache.encode.overlapped import Stop
from embedcache.errors import Interrupted
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore, StoreWriter


class Coordinator:
    """The one that gives out, publishes and counts.

    Parameters
    ----------
    client : Client
        Of the workers.
    briefing : Briefing
        What they are told first.
    store, writer
        The store and its writer, which holds all of it.
    progress, stop
        As of a run.
    """

    def __init__(
        self,
        client: Client,
        briefing: Briefing,
        store: EmbeddingStore,
        writer: StoreWriter,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._store = store
        self._progress, self._onward, self._stop = progress, Onward(progress), stop
        self._outcome = Outcome()
        self._roster = Roster(client, briefing, store, writer, self._outcome, progress)
        self._publisher = Publisher(store, writer, self._outcome)
        self._calls = Calls(client, briefing.topic)
        self._stopping = False

    def encode(self, backlog: Backlog) -> Outcome:
        """Encode and commit all tiles of a backlog.

        Raises
        ------
        Interrupted
            When a signal asked for it; what the workers had is committed.
        EmbedcacheError
            Of a worker, with its host's name; or of the store.
        """
        self._backlog = backlog
        try:
            self._roster.register()
            while self._backlog or self._roster.attempts():
                self._look()
                self._load()
                self._give_out()
                self._work_off()
                number = self._stop()
                if number:
                    self._end_early(number)
            return self._outcome
        finally:
            with suppress(Exception):  # the scheduler may be what has failed
                self._calls.close()
                self._roster.leave()

    # ---- who is there

    def _look(self) -> None:
        for member in self._roster.look():
            self._lose(member)

    def _load(self) -> None:
        """Let new workers load volume, weights and encoder."""
        for member, neighbours in self._roster.to_load():
            member.standing = Standing.LOADING
            number, numerics = self._calls.new_number(), self._roster.numerics
            member.loading = self._calls.begin(
                number, "load", member.address, get_ready, numerics, neighbours
            )

    def _loaded(self, member: Member) -> None:
        answer = self._result(member, member.loading)
        member.loading = None
        if isinstance(answer, Ready | Refused):
            self._roster.loaded(member, answer)

    def _lose(self, member: Member) -> None:
        """A worker is gone: what it did not hand over is to be done again."""
        self._roster.lose(member)
        for place, attempt in enumerate(member.attempts):
            self._drop(attempt)
            if place > 0:
                self._backlog.give_back(attempt.groups, attempt.done)  # it had not begun
                continue
            given_up = self._backlog.lost(attempt.groups, attempt.done)
            if given_up is not None:
                self._progress.say(self._publisher.give_up(given_up, member.host))
                self._onward.advance(len(given_up))
        if not self._stopping:
            self._progress.say(f"Worker {member.address} on {member.host} died; its work is given to others.")

    # ---- giving out

    def _give_out(self) -> None:
        """Fill every worker's window, the empty ones first; at the end take what waits to those that are idle."""
        ready = self._roster.ready()
        for depth in range(WINDOW):
            for member in ready:
                if len(member.attempts) > depth:
                    continue
                task = self._backlog.take(len(ready)) or self._taken_back(ready, depth)
                if not task:
                    return
                number = self._calls.new_number()
                work = Work(number, tuple(number for group in task for number in group.numbers))
                future = self._calls.begin(number, "work", member.address, do_work, work)
                member.attempts.append(Attempt(number, task, future))

    def _taken_back(self, ready: list[Member], depth: int) -> tuple[Group, ...]:
        """A task that waits behind another worker's, for a worker that has none."""
        for member in ready if depth == 0 else ():
            if len(member.attempts) > 1:
                attempt = member.attempts.pop()
                self._drop(attempt)
                self._backlog.give_back(attempt.groups, attempt.done)
                return self._backlog.take(len(ready))
        return ()

    def _drop(self, attempt: Attempt) -> None:
        """Forget an attempt and what it staged; its tiles are not done."""
        attempt.future.cancel(force=True)
        self._onward.advance(len(attempt.done) - attempt.steps)
        for group in attempt.groups:
            self._publisher.forget(group.numbers, attempt.number)

    # ---- what comes in

    def _work_off(self) -> None:
        for number, kind, what in self._calls.come_in():
            self._take_in(number, kind, what)

    def _take_in(self, number: int, kind: str, what: Any) -> None:
        if kind == SAID:
            self._progress.say(what)
        elif kind == "load":
            member = self._roster.find(what)
            if member is not None and member.loading is not None:
                self._loaded(member)
        else:
            self._take_in_of(number, kind, what)

    def _take_in_of(self, number: int, kind: str, what: Any) -> None:
        """What concerns an attempt; of one that was dropped nothing counts."""
        found = self._roster.attempt(number)
        if found is None:
            if kind == STAGED:
                self._publisher.forget(what.numbers, number)
            return
        member, attempt = found
        if kind == STEPS:
            attempt.steps += what[0]
            self._onward.advance(*what)
        elif kind == STAGED:
            self._publisher.publish(what, attempt)
        else:
            self._ended(member, attempt)

    def _ended(self, member: Member, attempt: Attempt) -> None:
        done = self._result(member, attempt.future)
        if not isinstance(done, Done):
            return
        for staged in done.staged:
            self._publisher.publish(staged, attempt)
        self._outcome.add(done.counts)
        member.attempts.remove(attempt)
        self._onward.advance(len(attempt.done) - attempt.steps)
        self._backlog.give_back(attempt.groups, attempt.done)
        if done.error is not None and not self._stopping:
            raise done.error

    def _result(self, member: Member, future: Any) -> Any:
        """What a task returned; None when its worker is gone."""
        answer = self._calls.answer(future, lambda: self._roster.is_there(member))
        if answer is None and self._roster.find(member.address) is member:
            self._lose(member)
        return answer

    # ---- the end

    def _end_early(self, number: int) -> None:
        """Let the workers hand over what they have, then end."""
        self._stopping = True
        addresses = [member.address for member in self._roster.ready()]
        self._progress.say("Stopping: the workers hand over what they have. A second signal stops at once.")
        self._calls.stop(addresses, number)
        for member in self._roster.ready():
            while len(member.attempts) > 1:
                self._drop(member.attempts.pop())
        while self._roster.attempts():
            self._look()
            self._work_off()
        raise Interrupted(
            f"{self._outcome.encoded} tiles of this run are committed in {self._store.path}.",
            signal_number=number,
            hint="Run the same command again; it goes on from there.",
        )
