"""Turns a model into a compiled one for one shape of input, or says why this machine cannot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Compute = Callable[[Tensor], Tensor]
"""Turns a static batch of model input into embeddings."""


def why_not_compiled(device: torch.device) -> str | None:
    """What a device lacks for ``torch.compile``; nothing is compiled to find out."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton is not installed, or does not know this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError):
        return "there is no C++ compiler (g++, or what $CXX names)"
    return None


def compiled(model: Compute, example: Tensor) -> Compute:
    """Compile a frozen model for one shape.

    Must be called, and its result too, without gradients. Another shape compiles anew.

    Parameters
    ----------
    model : nn.Module
        Its weights become constants of the code on a CPU, laid out as its matrix products like them best.
    example : Tensor
        Input of the shape, dtype and device that it will be given.

    Returns
    -------
    callable
        Compiled already, as its first call would do it.

    Raises
    ------
    Exception
        Whatever the compiler raises.
    """
    options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": example.device.type == "cpu"}
    # The whole graph or an error: a part left out, or too many shapes, would run uncompiled and give other bits
    fast: Compute = torch.compile(model, dynamic=False, fullgraph=True, options=options)
    fast(example)
    return fast
