"""Turns what is asked and what the device is into numerics: everything that may change bits, but not meaning.

A store keeps the numerics of its first commit, and every later run, worker and part computes under the same.
What is not asked for comes from a small table of what was measured to be fast; :mod:`embedcache.sam.tuning`
measures instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from embedcache.errors import InputError
from embedcache.sam.device import Precision, cpu_has_matrix_units

OWN = "own"
"""``attention`` of a registered encoder, which has whatever attention it has."""

STOCK = "stock"
"""``attention`` of segment-anything's own code, unchanged."""

REVISION = 2
"""Of how a variant is computed; stores begun under an earlier one go on under it."""

_CUDA_BATCH = 8  # more gives nothing: published runs are no faster at 32


def complete(
    asked: Mapping[str, Any] | None, *, device: torch.device, precision: Precision, registered: bool
) -> dict[str, Any]:
    """Numerics with nothing left open.

    Parameters
    ----------
    asked : dict or None
        What is fixed already: the numerics of a store, or a few of them.
    device : torch.device
        Where the encoder computes.
    precision : {"bf16", "fp32"}
        What it computes in.
    registered : bool
        Whether the encoder is one of :func:`embedcache.sam.register_encoder`.

    Returns
    -------
    dict of str to JSON
        ``attention``, ``compiled``, ``batch``, ``threads``, ``device``, ``torch``, ``revision``. ``threads`` is 0
        where their number changes no bits: on a GPU, and in bfloat16 on a CPU. ``revision`` is that of
        :func:`embedcache.sam.vit.make_fast`; numerics recorded without one stay without, and mean 1.

    Raises
    ------
    InputError
        When something asked for is impossible.
    """
    given = dict(asked or {})
    on_cpu, wants_compiled = device.type == "cpu", given.get("compiled", False)
    if not isinstance(wants_compiled, bool):
        raise InputError(f"compiled must be true or false; found {wants_compiled!r}.")
    attention = OWN if registered else usual_attention(device, precision)
    threads = given.get("threads", torch.get_num_threads() if on_cpu and precision == "fp32" else 0)
    numerics = {
        "attention": given.get("attention", attention),
        "compiled": wants_compiled,
        "batch": _whole("batch", given.get("batch", usual_batch(device)), at_least=1),
        "threads": _whole("threads", threads, at_least=0) if on_cpu else 0,
        "device": "cpu" if on_cpu else f"cuda:{torch.cuda.get_device_name(device)}",
        "torch": torch.__version__.partition("+")[0],
    }
    recorded_before_revisions = "torch" in given and "revision" not in given
    if numerics["attention"] not in (OWN, STOCK) and not recorded_before_revisions:
        numerics["revision"] = _whole("revision", given.get("revision", REVISION), at_least=1)
    return numerics


def usual_attention(device: torch.device, precision: Precision) -> str:
    """The attention variant that is fast on most devices of a kind."""
    if device.type == "cuda" or (precision == "bf16" and cpu_has_matrix_units()):
        return "folded"
    return "tiled"


def usual_batch(device: torch.device) -> int:
    """The static batch that is fast on most devices of a kind: a CPU core gains nothing from a second image."""
    return 1 if device.type == "cpu" else _CUDA_BATCH


def _whole(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name} must be a whole number of at least {at_least}; found {value!r}.")
    return value
