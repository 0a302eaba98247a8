"""Turns processes that ``torchrun`` started into one training: who is who, sums over all, and one's word for all.

Gradients are summed here in one flat piece rather than by torch's DistributedDataParallel: a step has several
forward and backward passes, and in some of them some weights take no part. Numbers and text only are exchanged,
never pickles. A process that dies closes its connections, so the others end in their next exchange, not at its
time limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embedcache.errors import ConfigError, Interrupted
from embedcache.train.stepping.device import training_device

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others."""

_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    Parameters
    ----------
    device : device
        Where it computes.
    rank, world : int
        Its number, and how many there are.
    local, local_world : int
        The same among those of this machine.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @property
    def main(self) -> bool:
        """Whether this one writes, logs and speaks."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all processes, in place; the same shapes and dtypes everywhere."""
        if self.world > 1:
            for tensor in tensors:
                with _others_die():
                    dist.all_reduce(tensor)

    def total(self, number: int) -> int:
        """The sum of a number over all processes."""
        held = torch.tensor([number], dtype=torch.int64)
        self.sum_([held])
        return int(held[0])

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.world == 1:
            return number
        held = torch.tensor([number], dtype=torch.int64)
        with _others_die():
            dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return int(held[0])

    def agree(self, value: Value) -> Value:
        """What the first process says, which must be JSON; the others' values do not matter."""
        if self.world == 1:
            return value
        text = json.dumps(value).encode() if self.main else b""
        size = torch.tensor([len(text)], dtype=torch.int64)
        with _others_die():
            dist.broadcast(size, src=0)
            data = torch.zeros(int(size[0]), dtype=torch.uint8)
            if self.main:
                data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            dist.broadcast(data, src=0)
        said: Value = json.loads(data.numpy().tobytes())
        return said

    def gather(self, rows: Sequence[Sequence[int]], width: int) -> list[tuple[int, ...]]:
        """All processes' rows of ``width`` whole numbers, in the order of the ranks."""
        if self.world == 1:
            return [tuple(row) for row in rows]
        most = self.most(len(rows))
        held = torch.full((most, width), -1, dtype=torch.int64)
        if rows:
            held[: len(rows)] = torch.tensor(rows, dtype=torch.int64)
        found = [torch.empty_like(held) for _ in range(self.world)]
        with _others_die():
            dist.all_gather(found, held)
        return [tuple(row) for part in found for row in part.tolist() if row[0] >= 0]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], beside: Tensor) -> Tensor:
        """Sum gradients over all processes, in place, and a few numbers beside them.

        Parameters
        ----------
        parameters : sequence of Parameter
            The same everywhere. A gradient that is None in all processes stays None.
        beside : float32 (n,)

        Returns
        -------
        float32 (n,)
            The numbers' sums.
        """
        if self.world == 1:
            return beside
        there = torch.tensor(
            [int(p.grad is not None) for p in parameters]
        )  # on the host: no GPU is waited for
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([*(grad.flatten() for grad in grads), beside])
        self.sum_([there, flat])
        begin = 0
        for parameter, has in zip(parameters, there.tolist(), strict=True):
            end = begin + parameter.numel()
            parameter.grad = flat[begin:end].view_as(parameter) if has else None
            begin = end
        return flat[begin:]


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among its fellows, for the block; alone unless ``torchrun`` started it.

    Parameters
    ----------
    device : str
        See :func:`~embedcache.train.stepping.device.training_device`; of several GPUs each process takes its own.

    Raises
    ------
    ConfigError
        When the environment says that there are others but not where, or there are fewer GPUs than processes.
    """
    said = _said(os.environ)
    if said is None:
        yield Ranks(training_device(device))
        return
    ranks = Ranks(_own_device(device, said), *said)
    ours = not dist.is_initialized()
    if ours:
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        with _others_die():
            dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield ranks
    except (
        BaseException
    ):  # a GPU's exchange may hang while it is taken down; the end of the process does it too
        ours = ours and ranks.device.type == "cpu"
        raise
    finally:
        if ours:
            with suppress(RuntimeError):
                dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process is the one that prints: the first, or alone."""
    said = _said(os.environ)
    return said is None or said[0] == 0


def _said(environment: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Rank, world, and the same on this machine, as ``torchrun`` says them; None when one is alone."""
    if int(environment.get("WORLD_SIZE", "1")) < 2 or "RANK" not in environment:
        return None
    absent = [name for name in _ADDRESS if not environment.get(name)]
    if absent:
        raise ConfigError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {' and '.join(absent)} are not set.",
            hint="Start several processes with: torchrun --nproc-per-node N -m embedcache train …",
        )
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return (
        rank,
        world,
        int(environment.get("LOCAL_RANK", rank)),
        int(environment.get("LOCAL_WORLD_SIZE", world)),
    )


def _own_device(text: str, said: tuple[int, int, int, int]) -> torch.device:
    device = training_device(text)
    if device.type == "cpu":
        return device
    _, _, local, local_world = said
    if ":" in text:
        raise ConfigError(f"--device is {text!r}, but {local_world} processes need a GPU each; give cuda.")
    if local_world > torch.cuda.device_count():
        raise ConfigError(
            f"{local_world} processes need a GPU each; this machine has {torch.cuda.device_count()}.",
            hint="Start fewer with --nproc-per-node, or give --device cpu.",
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def _others_die() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        words: Any = str(error).splitlines() or ["no reason given"]
        raise Interrupted(
            f"Another process of this training ended or cannot be reached ({words[0][:200]}).",
            signal_number=15,
            hint="Its own message says why; --resume goes on from the last save.",
        ) from error
