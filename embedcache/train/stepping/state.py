"""Turns weights, optimiser and counts into one safetensors file and back, so that a training can go on from it.

Tensors and scalars only: nothing is pickled, nothing is executed when it is read. A digest over all of it finds
flipped bits, which would otherwise train on as if nothing were wrong. There is no state of random numbers: all
that is drawn depends on counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from embedcache.errors import CorruptionError, InputError
from embedcache.files import read_error, write_file
from embedcache.train.checkpoint_file import content_digest
from embedcache.train.stepping.averaging import Average


@dataclass(frozen=True)
class Standing:
    """Where a training stands.

    Parameters
    ----------
    step, images : int
        Done so far.
    best : float
        Best figure so far; -1 before the first.
    best_step : int
        The step of the best figure.
    without_gain : int
        Validations since then.
    seconds : float
        Time spent training so far.
    window : dict of str to float
        Sums since the last row of ``metrics.jsonl``; see :class:`embedcache.train.stepping.rows.Window`.
    guard : list
        See :meth:`embedcache.train.stepping.guard.Guard.to_list`.
    """

    step: int = 0
    images: int = 0
    best: float = -1.0
    best_step: int = 0
    without_gain: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    guard: list[float | None] = field(default_factory=list)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    standing: Standing,
    *,
    average: Average | None = None,
) -> None:
    """Write all of it atomically: the weights themselves, and their average beside them."""
    tensors: dict[str, Tensor] = {f"decoder.{name}": t for name, t in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.weights().items()}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(asdict(standing))
    metadata = {"standing": text, "digest": content_digest(plain, text)}
    write_file(path, to_safetensors(plain, metadata=metadata))


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, average: Average | None = None
) -> Standing:
    """Put a saved state into model, optimiser and average.

    Raises
    ------
    CorruptionError
        When the file's bytes are not those that were written.
    InputError
        When it is of another training.
    """
    tensors, text = _read(path)
    try:
        standing = Standing(**json.loads(text))
        if average is not None:
            average.load(_under("average.", tensors))
        _restore(tensors, model, optimizer)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is of another training, so the run cannot go on ({error}).", hint=_anew(path)
        ) from error
    return standing


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors and standing as they were written."""
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        text = metadata["standing"]
        if metadata["digest"] != content_digest(tensors, text):
            raise ValueError("its digest is not the one recorded in it")
    except OSError as error:
        raise read_error(error, path) from error
    except (SafetensorError, LookupError, ValueError) as error:
        raise CorruptionError(
            f"{path} is damaged, so the run cannot go on ({error}).", hint=_anew(path)
        ) from error
    return tensors, text


def _anew(path: Path) -> str:
    return (
        f"Begin a new run where this one was best: --init {path.with_name('best.safetensors')}; "
        "or restore the file from a copy."
    )


def _restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(_under("decoder.", tensors))
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
