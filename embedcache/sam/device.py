"""Turns ``--device`` and ``--precision`` into a device that is there and what it computes in."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

from embedcache.errors import InputError

Precision = Literal["bf16", "fp32"]

_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def resolve_device(text: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there.

    Raises
    ------
    InputError
        When there is no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise InputError(f"There is no device {text!r}.", hint="Known: auto, cpu, cuda, cuda:N.")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= found:
            raise InputError(
                f"Device {text} is not there: torch {torch.__version__} sees {found} CUDA devices.",
                hint="Use --device cpu, or install a CUDA build of torch.",
            )
    return torch.device(text)


def resolve_precision(text: str, device: torch.device) -> Precision:
    """``auto``, ``bf16`` or ``fp32`` as what is used; auto is bf16 where the device computes in it natively.

    Raises
    ------
    InputError
        When there is no such precision, or a GPU does not have it.
    """
    if text == "bf16":
        if device.type == "cuda" and not _has_bf16(device):
            raise InputError(
                f"{torch.cuda.get_device_name(device)} does not compute in bfloat16.",
                hint="Use --precision fp32, or a GPU of compute capability 8.0 or later.",
            )
        return "bf16"
    if text == "fp32":
        return "fp32"
    if text != "auto":
        raise InputError(f"There is no precision {text!r}.", hint="Known: auto, bf16, fp32.")
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BF16_FLAGS.isdisjoint(_cpu_flags())


def cpu_has_matrix_units() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in units of their own (AMX)."""
    return "amx_bf16" in _cpu_flags()


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
