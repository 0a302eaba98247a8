"""Turns wishes and the amount of work into numerics: which attention, how large a batch, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from embedcache.sam.device import Precision
from embedcache.sam.numerics import complete
from embedcache.sam.parts import is_registered
from embedcache.sam.weights import Weights

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is wished for; the rest is decided.

    Parameters
    ----------
    attention : str
        ``auto``, or a variant of :mod:`embedcache.sam.attention`.
    compile : str
        ``auto``, ``on`` or ``off``.
    batch : int, optional
        Images at once.
    threads : int, optional
        CPU threads of the encoder.
    """

    attention: str = AUTO
    compile: str = AUTO
    batch: int | None = None
    threads: int | None = None


def tune(
    weights: Weights,
    *,
    device: torch.device,
    precision: Precision,
    tiles_to_do: int,
    wishes: Tuning,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Decide the numerics of a new store.

    Parameters
    ----------
    weights : Weights
        Of the encoder.
    device : torch.device
        Where it computes.
    precision : {"bf16", "fp32"}
        What it computes in.
    tiles_to_do : int
        How many images will be encoded: compiling pays for many.
    wishes : Tuning
        What is decided already. ``threads`` is set for the process.
    say : callable, optional
        Told what was decided, and why.

    Returns
    -------
    dict of str to JSON
        Complete numerics, for :class:`embedcache.sam.encoder.Encoder`.
    """
    if wishes.threads is not None and device.type == "cpu":
        torch.set_num_threads(wishes.threads)
    wished: dict[str, Any] = {}
    if wishes.attention != AUTO:
        wished["attention"] = wishes.attention
    if wishes.batch is not None:
        wished["batch"] = wishes.batch
    return complete(wished, device=device, precision=precision, registered=is_registered(weights.model_type))
