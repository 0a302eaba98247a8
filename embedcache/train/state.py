"""Turns decoder and optimiser into one safetensors file and back, so that a training can go on where it was.

Tensors and scalars only: nothing is pickled, nothing is executed when it is read. A digest over all of it finds
flipped bits, which would otherwise train on as if nothing were wrong.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from embedcache.errors import InputError
from embedcache.files import write_file
from embedcache.sam.decoder import Decoder
from embedcache.train.checkpoint import content_digest


@dataclass(frozen=True)
class Standing:
    """Where a training stands.

    Parameters
    ----------
    step : int
        Steps done.
    best : float
        Best figure so far; -1 before the first.
    best_step : int
        The step of the best figure.
    without_gain : int
        Validations since then.
    seconds : float
        Time spent training so far.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    without_gain: int = 0
    seconds: float = 0.0


def save_state(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, standing: Standing) -> None:
    """Write all of it atomically."""
    tensors: dict[str, Tensor] = {f"decoder.{name}": t for name, t in decoder.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(asdict(standing))
    metadata = {"standing": text, "digest": content_digest(plain, text)}
    write_file(path, to_safetensors(plain, metadata=metadata))


def load_state(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer) -> Standing:
    """Put a saved state into decoder and optimiser.

    Raises
    ------
    InputError
        When the file cannot be read or is of another training.
    """
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        if metadata["digest"] != content_digest(tensors, metadata["standing"]):
            raise ValueError("its digest is not the one recorded in it")
        standing = Standing(**json.loads(metadata["standing"]))
        _restore(tensors, decoder, optimizer)
    except (
        SafetensorError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{path} cannot be read, so the run cannot go on ({error}).",
            hint=f"Begin a new run where this one was best: --init {path.with_name('best.safetensors')}",
        ) from error
    return standing


def _restore(tensors: dict[str, Tensor], decoder: Decoder, optimizer: torch.optim.Optimizer) -> None:
    decoder.load_state_dict(
        {n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder.")}
    )
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
