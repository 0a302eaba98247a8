"""Turns wishes and the amount of work into numerics: which attention, how large a batch, compiled or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from embedcache.geometry import IMAGE_SIZE
from embedcache.sam.compiling import why_not_compiled
from embedcache.sam.device import Precision
from embedcache.sam.encoder import Encoder
from embedcache.sam.numerics import OWN, STOCK, complete
from embedcache.sam.parts import is_registered
from embedcache.sam.weights import Weights

AUTO = "auto"

_CUDA_VARIANTS = ("folded", "mask", "flex")
_TIMED_BATCHES = 2
_FEWEST_TILES = 64  # below, even measuring would cost more than compiling could save
_COMPILE_SECONDS = 60.0  # vit_b on one core
_TRIAL_PAYS = 40  # compile, twice, in at most a twentieth of the time that the work takes
_WORTH_IT = 0.97


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


def set_threads(threads: int | None, device: torch.device) -> None:
    """Set how many CPU threads an encoder may use in this process; the numerics of float32 overrule it."""
    if threads is not None and device.type == "cpu":
        torch.set_num_threads(threads)


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
    set_threads(wishes.threads, device)
    wished: dict[str, Any] = {}
    if wishes.attention != AUTO:
        wished["attention"] = wishes.attention
    if wishes.batch is not None:
        wished["batch"] = wishes.batch
    registered = is_registered(weights.model_type)

    def numerics(**chosen: Any) -> dict[str, Any]:
        return complete({**wished, **chosen}, device=device, precision=precision, registered=registered)

    def seconds(**chosen: Any) -> float:
        return _seconds(Encoder(weights, device=device, precision=precision, numerics=numerics(**chosen)))

    if device.type == "cuda" and wishes.attention == AUTO and not registered:
        measured = _measured(seconds, _CUDA_VARIANTS, say)
        wished["attention"] = min(measured, key=lambda variant: measured[variant])
        say(f"Attention: {wished['attention']}, of {_listed(measured)}.")
    return numerics(compiled=_compile_pays(seconds, numerics(), tiles_to_do, wishes.compile, device, say))


def _compile_pays(
    seconds: Callable[..., float],
    numerics: dict[str, Any],
    tiles_to_do: int,
    wish: str,
    device: torch.device,
    say: Callable[[str], None],
) -> bool:
    """Whether to compile: as wished, or where the work is long enough to try it and it was faster."""
    if wish == "off" or (wish == AUTO and numerics["attention"] in (OWN, STOCK)):
        return False
    reason = why_not_compiled(device)
    if reason is not None:
        say(f"Not compiled: {reason}.")
        return False
    if wish == "on":
        return True
    if tiles_to_do < _FEWEST_TILES:
        return False
    plain = seconds()
    if tiles_to_do * plain < _TRIAL_PAYS * _COMPILE_SECONDS:
        say(f"Not compiled: {tiles_to_do} images of {plain:.3g} s are too few for it to pay.")
        return False
    fast = seconds(compiled=True)
    pays = fast < plain * _WORTH_IT
    say(f"{'Compiled' if pays else 'Not compiled'}: {fast:.3g} s an image compiled, {plain:.3g} s plain.")
    return pays


def _measured(
    seconds: Callable[..., float], variants: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, float]:
    """Seconds per image by variant; those that this device cannot run are left out, the first must."""
    measured = {variants[0]: seconds(attention=variants[0])}
    for variant in variants[1:]:
        try:
            measured[variant] = seconds(attention=variant)
        except Exception as error:  # another variant does the same: nothing is lost
            say(f"Attention {variant} does not run here: {str(error).partition(chr(10))[0]}")
    return measured


def _seconds(encoder: Encoder) -> float:
    """Seconds per image: the fastest of a few batches, after one that does not count."""
    images = torch.zeros(encoder.batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    images[:, :, ::2] = 1.0
    images = images.to(encoder.device)
    durations = []
    for _ in range(1 + _TIMED_BATCHES):
        begin = time.perf_counter()
        encoder.on_device(images)
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)
        durations.append(time.perf_counter() - begin)
    return min(durations[1:]) / encoder.batch


def _listed(measured: dict[str, float]) -> str:
    return ", ".join(f"{variant} {duration * 1e3:.3g} ms" for variant, duration in measured.items())
