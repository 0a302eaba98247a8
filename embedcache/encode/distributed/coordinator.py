"""Turns a plan into committed shards by giving tasks to workers and publishing what they stage.

One thread, one queue: what workers tell and what becomes of their tasks comes in through it; nothing else changes
what the coordinator knows, and nothing but the coordinator changes the store.
"""

from __future__ import annotations

import pickle
import queue
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from distributed import Client, KilledWorker

from embedcache.encode.distributed.backlog import DEATHS, Backlog, Group
from embedcache.encode.distributed.members import WINDOW, Attempt, Member, Standing
from embedcache.encode.distributed.messages import (
    SAID,
    STAGED,
    STEPS,
    Briefing,
    Done,
    NotReadyError,
    Outcome,
    Ready,
    Refused,
    Staged,
    Work,
)
from embedcache.encode.distributed.worker import EncodePlugin, do_work, get_ready, stop_work
from embedcache.encode.overlapped import Stop
from embedcache.errors import EmbedcacheError, InputError, Interrupted, MismatchError
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore, StoreWriter
from embedcache.store.shards.staging import StagedShard, remove_staged

LOOK_SECONDS = 1.0
"""How often it is looked who is there."""

WAITING_SECONDS = 30.0
"""How often it is said that no worker is there."""

_POLL_SECONDS = 0.2
_LOADING_DEATHS = 3


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
        self._client, self._briefing = client, briefing
        self._store, self._writer = store, writer
        self._progress, self._stop = progress, stop
        self._numerics = None if briefing.options.allow_numerics else store.numerics
        self._decided: dict[str, Any] | None = None
        self._members: dict[str, Member] = {}
        self._refused: dict[str, EmbedcacheError] = {}
        self._queue: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self._next_attempt = secrets.randbits(40) << 20  # no other run's, on whatever machine
        self._published: set[tuple[int, int]] = set()
        self._done: set[int] = set()
        self._loading_deaths = 0
        self._looked = self._seen = 0.0
        self._outcome = Outcome()
        self._stopping = False

    def encode(self, groups: Iterable[Group]) -> Outcome:
        """Encode and commit all tiles of the groups.

        Raises
        ------
        Interrupted
            When a signal asked for it; what the workers had is committed.
        EmbedcacheError
            Of a worker, with its host's name; or of the store.
        """
        self._backlog = Backlog(groups)
        topic = self._briefing.topic
        self._client.subscribe_topic(topic, self._hear)
        self._register()
        try:
            self._seen = time.monotonic()
            while self._backlog or self._attempts():
                self._look()
                self._load()
                self._give_out()
                self._work_off()
                number = self._stop()
                if number:
                    self._end_early(number)
            self._outcome.workers = len(self._outcome.hosts)
            return self._outcome
        finally:
            with suppress(Exception):  # the scheduler may be what has failed
                self._client.unsubscribe_topic(topic)
                self._client.unregister_worker_plugin(topic)

    # ---- who is there

    def _register(self) -> None:
        try:
            self._client.register_plugin(EncodePlugin(self._briefing))
        except Exception as error:
            raise InputError(
                f"The workers cannot take part: {type(error).__name__}: {error}.",
                hint="Start scheduler, workers and embedcache from one environment.",
            ) from error

    def _look(self) -> None:
        """See which workers came and which went."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        there = self._workers_there()
        for address in set(self._members) - set(there):
            self._lose(self._members[address])
        for address, facts in there.items():
            if address not in self._members:
                self._members[address] = Member(address, str(facts.get("host", address)))
        if self._members:
            self._seen = now
        elif now - self._seen > WAITING_SECONDS:
            self._seen = now
            self._progress.say("No worker is there; waiting for one.")

    def _workers_there(self) -> dict[str, dict[str, Any]]:
        try:
            # not `scheduler_info()`: what it returns may have been replaced by a shortened list meanwhile
            return dict(self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"])
        except Exception as error:
            raise InputError(
                f"The scheduler {self._client.scheduler} no longer answers ({type(error).__name__}: {error}).",
                hint="What was committed stays; run the same command again.",
            ) from error

    def _load(self) -> None:
        """Let new workers load volume, weights and encoder; the first alone, when it is to decide the numerics."""
        decides = self._numerics is None and not self._briefing.options.allow_numerics
        for member in self._members.values():
            loading = any(other.standing is Standing.LOADING for other in self._members.values())
            if member.standing is not Standing.NEW or (decides and loading):
                continue
            neighbours = sum(other.host == member.host for other in self._members.values())
            member.standing = Standing.LOADING
            member.loading = self._submit(
                member, "load", self._new_number(), get_ready, self._numerics, neighbours
            )

    def _loaded(self, member: Member) -> None:
        answer = self._result(member, member.loading)
        member.loading = None
        if answer is None:
            return
        if isinstance(answer, Ready):
            try:
                allow = self._briefing.options.allow_numerics
                self._numerics = self._writer.decide_numerics(answer.numerics, allow=allow)
                self._decided = self._numerics
                if allow:
                    self._numerics = None
            except MismatchError as error:
                answer = Refused(answer.host, error)
        if isinstance(answer, Refused):
            self._refuse(member, answer.error)
            return
        member.standing = Standing.READY
        self._outcome.hosts.append(answer.host)
        self._outcome.device = self._outcome.device or answer.device
        self._outcome.seconds["prepare"] = self._outcome.seconds.get("prepare", 0.0) + answer.seconds

    def _refuse(self, member: Member, error: EmbedcacheError) -> None:
        member.standing = Standing.REFUSED
        self._refused[member.address] = error
        if all(other.standing is Standing.REFUSED for other in self._members.values()):
            raise error
        self._progress.say(f"{member.address} is left out. {error}")

    def _lose(self, member: Member) -> None:
        """A worker is gone: what it did not hand over is to be done again."""
        del self._members[member.address]
        if member.standing is Standing.LOADING:
            self._loading_deaths += 1
            if self._loading_deaths >= _LOADING_DEATHS:
                raise InputError(
                    f"Workers die while they load the model and the volume, the last on {member.host}.",
                    hint="The memory of that machine may be too small for so many workers; see its logs.",
                )
        for place, attempt in enumerate(member.attempts):
            begun = place == 0
            self._drop(attempt)
            given_up = self._backlog.lost(attempt.groups, self._done, begun=begun)
            if given_up is not None:
                self._give_up(given_up, member)
        if not self._stopping:
            self._progress.say(f"Worker {member.address} on {member.host} died; its work is given to others.")

    def _give_up(self, group: Group, member: Member) -> None:
        reason = f"given up: {DEATHS} workers died while they encoded it, the last on {member.host}"
        by_shard: dict[int, dict[int, str]] = {}
        for number in group.numbers:
            by_shard.setdefault(number // self._store.shard_tiles, {})[number] = reason
        for shard, failed in by_shard.items():
            self._writer.commit_shard(shard, embeddings={}, input_digests={}, failed=failed)
            self._outcome.failed.update(failed)
        self._done.update(group.numbers)
        shards = ", ".join(map(str, by_shard))
        self._progress.say(f"Shard {shards}: {reason}. The run goes on without it.")
        self._progress.advance(len(group.numbers))

    # ---- giving out

    def _attempts(self) -> list[Attempt]:
        return [attempt for member in self._members.values() for attempt in member.attempts]

    def _ready(self) -> list[Member]:
        return [member for member in self._members.values() if member.standing is Standing.READY]

    def _give_out(self) -> None:
        """Fill every worker's window, the empty ones first; at the end take what waits to those that are idle."""
        ready = self._ready()
        for depth in range(WINDOW):
            for member in ready:
                if len(member.attempts) > depth:
                    continue
                task = self._backlog.take(len(ready)) or self._taken_back(ready, depth)
                if not task:
                    return
                number = self._new_number()
                numbers = tuple(number for group in task for number in group.numbers)
                future = self._submit(member, "work", number, do_work, Work(number, numbers))
                member.attempts.append(Attempt(number, task, future))

    def _taken_back(self, ready: list[Member], depth: int) -> tuple[Group, ...]:
        """A task that waits behind another worker's, for a worker that has none."""
        for member in ready if depth == 0 else ():
            if len(member.attempts) > 1:
                attempt = member.attempts.pop()
                self._drop(attempt)
                return attempt.groups
        return ()

    def _submit(self, member: Member, kind: str, number: int, function: Any, *arguments: Any) -> Any:
        future = self._client.submit(
            function,
            self._briefing.topic,
            *arguments,
            key=f"{self._briefing.topic}-{kind}-{number}",
            workers=[member.address],
            allow_other_workers=False,
            retries=0,
            pure=False,
        )
        future.add_done_callback(lambda _: self._queue.put((number, kind, member.address)))
        return future

    def _drop(self, attempt: Attempt) -> None:
        """Forget an attempt and what it staged; its tiles are not done."""
        attempt.future.cancel(force=True)
        self._progress.advance(attempt.published - attempt.steps)
        for shard in {
            number // self._store.shard_tiles for group in attempt.groups for number in group.numbers
        }:
            remove_staged(self._store.path, shard, attempt.number)

    def _new_number(self) -> int:
        self._next_attempt += 1
        return self._next_attempt

    # ---- what comes in

    def _hear(self, event: tuple[float, bytes]) -> None:
        """Called by dask's thread."""
        self._queue.put(pickle.loads(event[1]))

    def _work_off(self) -> None:
        """Wait a moment for something to come in, and take in all that is there."""
        try:
            number, kind, what = self._queue.get(timeout=_POLL_SECONDS)
            while True:
                self._take_in(number, kind, what)
                number, kind, what = self._queue.get_nowait()
        except queue.Empty:
            return

    def _take_in(self, number: int, kind: str, what: Any) -> None:
        if kind == SAID:
            self._progress.say(what)
        elif kind == "load":
            member = self._members.get(what)
            if member is not None and member.loading is not None:
                self._loaded(member)
        else:
            self._take_in_of(number, kind, what)

    def _take_in_of(self, number: int, kind: str, what: Any) -> None:
        """What concerns an attempt; of one that was dropped nothing counts."""
        for member in self._members.values():
            for attempt in member.attempts:
                if attempt.number == number:
                    if kind == STEPS:
                        attempt.steps += what[0]
                        self._progress.advance(*what)
                    elif kind == STAGED:
                        self._publish(attempt, what)
                    else:
                        self._ended(member, attempt)
                    return
        if kind == STAGED:
            remove_staged(self._store.path, int(what.shard["record"]["shard"]), number)

    def _ended(self, member: Member, attempt: Attempt) -> None:
        done = self._result(member, attempt.future)
        if not isinstance(done, Done):
            return
        for staged in done.staged:
            self._publish(attempt, staged)
        self._outcome.add(done.counts)
        member.attempts.remove(attempt)
        self._progress.advance(attempt.published - attempt.steps)
        self._backlog.give_back(attempt.groups, self._done)
        if done.error is not None and not self._stopping:
            raise done.error

    def _result(self, member: Member, future: Any) -> Any:
        """What a task returned; None when its worker is gone."""
        try:
            return future.result(timeout=30)
        except (KilledWorker, NotReadyError):
            if member.address in self._members:
                self._lose(member)
            return None

    def _publish(self, attempt: Attempt, staged: Staged) -> None:
        mark = staged.attempt, staged.place
        if mark in self._published:
            return
        self._published.add(mark)
        begin = time.perf_counter()
        if staged.numerics != self._decided:  # a worker that ran out of memory goes on with smaller batches
            self._decided = self._writer.decide_numerics(staged.numerics, allow=True)
        shard = StagedShard.from_dict(staged.shard, self._store.shard_tiles)
        if not self._writer.publish_shard(shard):
            return  # its tiles are not done, and so given out again
        numbers = [*staged.encoded, *staged.skipped, *staged.failed]
        self._done.update(numbers)
        attempt.published += len(numbers)
        self._outcome.encoded += len(staged.encoded)
        self._outcome.bytes_written += shard.bytes_written
        self._outcome.failed.update(staged.failed)
        self._outcome.seconds["write"] = self._outcome.seconds.get("write", 0.0) + time.perf_counter() - begin

    # ---- the end

    def _end_early(self, number: int) -> None:
        """Let the workers hand over what they have, then end."""
        self._stopping = True
        addresses = [member.address for member in self._ready()]
        self._progress.say("Stopping: the workers hand over what they have. A second signal stops at once.")
        with suppress(Exception):  # who is dead need not be asked
            self._client.run(stop_work, self._briefing.topic, number, workers=addresses, on_error="ignore")
        for member in self._ready():
            while len(member.attempts) > 1:
                self._drop(member.attempts.pop())
        while self._attempts():
            self._look()
            self._work_off()
        raise Interrupted(
            f"Interrupted; {self._outcome.encoded} tiles of this run are committed in {self._store.path}.",
            signal_number=number,
            hint="Run the same command again; it goes on from there.",
        )
