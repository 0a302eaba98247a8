"""Turns a task into staged shards, in a worker process: the pipeline of every run, with a writer that only stages.

A process loads volume, weights and encoder once per run, at the first task that asks for them, in the thread that
works: the process goes on answering the scheduler meanwhile.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from distributed import Worker, WorkerPlugin, get_worker

from embedcache.encode.distributed.messages import (
    STAGED,
    Briefing,
    Counts,
    Done,
    NotReadyError,
    Ready,
    Refused,
    Staged,
    Work,
)
from embedcache.encode.distributed.staging_writer import StagingWriter
from embedcache.encode.distributed.told import Tell, Told
from embedcache.encode.distributed.worker_job import named, open_job
from embedcache.encode.plan import plan_encode
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.provenance import device_name
from embedcache.encode.run import EncodeRun
from embedcache.encode.stages import Stages
from embedcache.encode.twins import Twins
from embedcache.errors import EmbedcacheError, Interrupted
from embedcache.heap import keep_freed_memory
from embedcache.sam.device import resolve_device, resolve_precision
from embedcache.sam.encoder import Encoder

_AT_WORK: dict[str, Post] = {}
"""This process's share in runs, by topic."""


class EncodePlugin(WorkerPlugin):
    """Gives every worker, also those that come later, its post in a run, and takes it away at the run's end."""

    def __init__(self, briefing: Briefing) -> None:
        self.name = briefing.topic
        self._briefing = briefing

    def setup(self, worker: Worker) -> None:
        """Make a post; nothing is loaded yet."""
        if self._briefing.local and threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches all processes of a terminal: the coordinator decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _AT_WORK.setdefault(self._briefing.topic, Post(self._briefing))

    def teardown(self, worker: Worker) -> None:
        """Let go of model and volume."""
        post = _AT_WORK.pop(self._briefing.topic, None)
        if post is not None:
            post.stop_number = signal.SIGTERM


def get_ready(topic: str, numerics: Mapping[str, Any] | None, neighbours: int) -> Ready | Refused:
    """Load everything; ``neighbours`` workers share this machine's cores. Runs as a task."""
    host = socket.gethostname()
    try:
        return _post(topic).get_ready(numerics, neighbours)
    except EmbedcacheError as error:
        return Refused(host, named(error, host))


def resolve_there(device: str, precision: str) -> str | Refused:
    """What a precision comes to on this machine's device. Runs as a task."""
    host = socket.gethostname()
    try:
        return resolve_precision(precision, resolve_device(device))
    except EmbedcacheError as error:
        return Refused(host, named(error, host))


def do_work(topic: str, work: Work) -> Done:
    """Encode tiles and stage their shards. Runs as a task."""
    worker = get_worker()

    def tell(kind: str, what: Any) -> None:
        worker.log_event(topic, pickle.dumps((work.attempt, kind, what)))

    task = worker.state.tasks.get(worker.get_current_task())

    def is_wanted() -> bool:
        return task is None or task.state == "executing"

    return _post(topic).do(work, tell, is_wanted)


def stop_work(topic: str, number: int) -> None:
    """Ask this process to stage what it has and end its task; may be called while it works."""
    post = _AT_WORK.get(topic)
    if post is not None:
        post.stop_number = number


def _post(topic: str) -> Post:
    try:
        return _AT_WORK[topic]
    except KeyError:
        raise NotReadyError(f"process {os.getpid()} has no post in run {topic}") from None


class Post:
    """What one process has and does in a run.

    Attributes
    ----------
    stop_number : int or None
        The signal that wants it to stop.
    """

    def __init__(self, briefing: Briefing) -> None:
        self.stop_number: int | None = None
        self._briefing = briefing
        self._job: EncodeJob | None = None
        self._encoder: Encoder | None = None
        self._twins: Twins | None = None
        self._alone = threading.Lock()  # a worker of several threads would encode several tasks at once

    def get_ready(self, numerics: Mapping[str, Any] | None, neighbours: int) -> Ready:
        """Open the job and build the encoder under these numerics, or under those it decides itself."""
        begin = time.perf_counter()
        keep_freed_memory()
        job = self._opened()
        briefing = self._briefing
        cores = len(os.sched_getaffinity(0))
        if job.device.type == "cpu":
            torch.set_num_threads(briefing.threads or max(1, cores // neighbours))
        assert job.store is not None
        job.store.catch_up()
        writer = StagingWriter(job.store, 0, numerics, lambda staged: None)
        if self._encoder is None:
            run = EncodeRun(job, Stages(), Told(lambda kind, what: None), lambda: None)
            self._encoder = run.encoder(job.store, writer, briefing.tiles)
        else:
            writer.decide_numerics(self._encoder.numerics, allow=briefing.options.allow_numerics)
        return Ready(
            socket.gethostname(),
            device_name(job.device),
            dict(self._encoder.numerics),
            time.perf_counter() - begin,
            neighbours,
            cores,
        )

    def do(self, work: Work, tell: Tell, is_wanted: Callable[[], bool]) -> Done:
        """Encode and stage the missing tiles of some shards."""
        with self._alone:
            return self._do(work, tell, is_wanted)

    def _do(self, work: Work, tell: Tell, is_wanted: Callable[[], bool]) -> Done:
        job, encoder = self._opened(), self._encoder
        if encoder is None or job.store is None:
            raise NotReadyError("a worker was given a task before it was ready")
        staged: list[Staged] = []

        def keep(one: Staged) -> None:
            staged.append(one)
            tell(STAGED, one)

        def stop() -> int | None:
            return self.stop_number if is_wanted() else signal.SIGTERM

        stages, told = Stages(), Told(tell)
        run = EncodeRun(job, stages, told, stop, encoder=encoder, twins=self._twins)
        self._twins = None
        writer = StagingWriter(job.store, work.attempt, encoder.numerics, keep)
        error: EmbedcacheError | None = None
        try:
            job.store.catch_up()
            wanted = np.zeros(len(job.table), dtype=np.bool_)
            wanted[list(work.numbers)] = True
            plan = plan_encode(
                job.table, wanted, None, job.store.shard_tiles, store_dtype=job.spec.store_dtype
            )
            run.encode_missing(plan, job.store, writer)
            self._twins = run.twins  # only of a task that came to its end: none waits for another's pixels
        except Interrupted as interruption:
            error = interruption
        except EmbedcacheError as failure:
            error = named(failure, socket.gethostname())
        finally:
            told.flush()
        counts = Counts(
            run.encoder_calls,
            run.identical,
            run.source_chunks_read,
            run.source_bytes_read,
            dict(stages.seconds),
            dict(stages.waits),
        )
        return Done(tuple(staged), counts, error)

    def _opened(self) -> EncodeJob:
        if self._job is None:
            self._job = open_job(self._briefing)
        return self._job
