"""Turns ``--workers`` or ``--scheduler`` into a connected dask client: processes here, or somebody's cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster

from embedcache.encode.options import EncodeOptions
from embedcache.errors import ConfigError, InputError

CONNECT_SECONDS = 15
"""For so long an address that was given is tried."""

_LOCAL = {
    "distributed.scheduler.allowed-failures": 0,  # the coordinator counts deaths itself
    "distributed.scheduler.worker-ttl": None,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.tick.limit": "1h",
    "distributed.worker.profile.enabled": False,
}
_COMPARED = ("python", "distributed", "dask", "msgpack", "cloudpickle")


@contextmanager
def connected(options: EncodeOptions, device: torch.device) -> Iterator[Client]:
    """A client of the workers that the options ask for; workers started here are gone afterwards.

    Raises
    ------
    ConfigError
        When there are fewer GPUs than workers.
    InputError
        When no scheduler answers, or one that this process does not understand.
    """
    with _quiet():
        if options.scheduler is not None:
            with _foreign(options.scheduler) as client:
                yield client
            return
        with _local(worker_environments(options.workers, device)) as client:
            yield client


def worker_environments(workers: int, device: torch.device) -> list[dict[str, str]]:
    """What each worker's environment has of its own: a GPU that no other one sees.

    Raises
    ------
    ConfigError
        When there are fewer GPUs than workers, or one was named.
    """
    if device.type == "cpu":
        return [{"CUDA_VISIBLE_DEVICES": ""}] * workers
    index: int | None = device.index  # torch says it is never None
    if index is not None:
        raise ConfigError(
            f"--device {device} names one GPU; {workers} workers take one each.",
            hint="Give --device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES.",
        )
    gpus = visible_gpus(os.environ, torch.cuda.device_count())
    if workers > len(gpus):
        raise ConfigError(
            f"--workers {workers}: there are {len(gpus)} GPUs here, one for a worker.",
            hint=f"Give --workers {len(gpus)}, or --device cpu.",
        )
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:workers]]


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [name for name in named if name][:count] or [str(number) for number in range(count)]


@contextmanager
def _local(environments: list[dict[str, str]]) -> Iterator[Client]:
    """Workers on this machine, one process for each; without a limit of memory, so that none is killed for it."""
    common = {
        "host": "127.0.0.1",
        "protocol": "tcp://",
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",  # None would mean 8787, and a warning when that is taken
    }
    worker: dict[str, Any] = {**common, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    specs = {
        number: {"cls": Nanny, "options": {**worker, "name": f"worker-{number}", "env": environment}}
        for number, environment in enumerate(environments)
    }
    environment = dict(os.environ)  # dask sets its own for the processes that it starts
    with (
        dask.config.set(_LOCAL),
        _started(specs, {"cls": Scheduler, "options": {**common, "port": 0}}) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        _restore(environment)
        yield client


def _started(workers: dict[int, Any], scheduler: dict[str, Any]) -> Any:
    """The cluster, with all of its workers there."""
    try:
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise InputError(
            f"{len(workers)} workers could not be started ({_first_line(error)}).",
            hint='A script that starts workers does so below `if __name__ == "__main__":`, as they load it again.',
        ) from error


def _restore(environment: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


@contextmanager
def _foreign(address: str) -> Iterator[Client]:
    """A scheduler that somebody else runs; its workers stay."""
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"--scheduler {address}: no scheduler answers within {CONNECT_SECONDS} s ({_first_line(error)}).",
            hint="Start one with `dask scheduler`, and give the address that it prints, such as tcp://node1:8786.",
        ) from error
    try:
        versions: Any = client.get_versions()
        require_same_versions(versions)
        yield client
    finally:
        with suppress(Exception):  # a scheduler that is gone
            client.close(timeout=5)


def require_same_versions(found: Mapping[str, Any]) -> None:
    """Refuse a scheduler that may not understand us, by what it says of itself.

    Raises
    ------
    InputError
        With the packages that differ.
    """
    ours, theirs = (found[side] or {"host": {}, "packages": {}} for side in ("client", "scheduler"))
    differing = [
        f"{name} {_version(theirs, name)} there, {_version(ours, name)} here"
        for name in _COMPARED
        if _version(ours, name) != _version(theirs, name)
    ]
    if differing:
        raise InputError(
            f"The scheduler runs other versions: {'; '.join(differing)}.",
            hint="Start scheduler, workers and embedcache from one environment.",
        )


def _version(side: Mapping[str, Any], name: str) -> str:
    if name == "python":  # pickles of one minor version are the others' too
        return ".".join(str(side["host"].get("python", "unknown")).split(".")[:2])
    return str(side["packages"].get(name, "unknown"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's own lines off stderr: what matters of them is said by the coordinator."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio", "bokeh")]
    loggers += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.startswith(("distributed.", "tornado."))
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
