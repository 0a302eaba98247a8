"""Turns calls into dask tasks, each for one worker, and what comes of them into one queue."""

from __future__ import annotations

import pickle
import queue
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from distributed import Client, Future, KilledWorker

from embedcache.encode.distributed.messages import NotReadyError
from embedcache.encode.distributed.worker import stop_work

POLL_SECONDS = 0.2
"""How long it is waited for something to come in, before it is looked whether a signal came."""

ANSWER_SECONDS = 30.0
"""For so long the answer of a task that has ended is fetched; its worker may have died in between."""

Come = tuple[int, str, Any]
"""Number of a call, kind of what is told of it, and what is told."""


class Calls:
    """What one run asks of workers, and hears from them.

    Parameters
    ----------
    client : Client
        Of the workers.
    topic : str
        Name of the run; workers' events come under it.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self._client, self._topic = client, topic
        self._queue: queue.SimpleQueue[Come] = queue.SimpleQueue()
        self._last = secrets.randbits(40) << 20  # no other run's, on whatever machine
        client.subscribe_topic(topic, self._hear)

    def close(self) -> None:
        """Hear nothing more."""
        self._client.unsubscribe_topic(self._topic)

    def new_number(self) -> int:
        """One that no call, of any run, has had."""
        self._last += 1
        return self._last

    def begin(
        self, number: int, kind: str, address: str, function: Callable[..., Any], *arguments: Any
    ) -> Future[Any]:
        """Let a worker do something; when it has ended ``(number, kind, address)`` comes in."""
        future = self._client.submit(
            function,
            self._topic,
            *arguments,
            key=f"{self._topic}-{kind}-{number}",
            workers=[address],
            allow_other_workers=False,
            retries=0,
            pure=False,
        )
        future.add_done_callback(lambda _: self._queue.put((number, kind, address)))
        return future

    def answer(self, future: Future[Any], is_there: Callable[[], bool]) -> Any:
        """What an ended task returned; None when its worker is gone, or loaded nothing.

        An answer lies with its worker until it is fetched. One that dies before takes it along, and dask would
        wait for the same address to come back.
        """
        for _ in range(round(ANSWER_SECONDS)):
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if not is_there():
                    return None
            except (KilledWorker, NotReadyError, CancelledError):
                return None
        return None

    def come_in(self) -> Iterator[Come]:
        """What has come in, after waiting a moment for the first of it."""
        with suppress(queue.Empty):
            yield self._queue.get(timeout=POLL_SECONDS)
            while True:
                yield self._queue.get_nowait()

    def stop(self, addresses: list[str], signal_number: int) -> None:
        """Ask workers to stage what they have and to end their task."""
        with suppress(Exception):  # who is dead need not be asked
            self._client.run(stop_work, self._topic, signal_number, workers=addresses, on_error="ignore")

    def _hear(self, event: tuple[float, bytes]) -> None:
        """Called by dask's thread."""
        self._queue.put(pickle.loads(event[1]))
