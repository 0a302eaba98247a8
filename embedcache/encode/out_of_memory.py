"""Turns running out of memory, wherever it happens in a run, into a refusal that says what can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from embedcache.errors import InputError
from embedcache.sam.encoder import is_out_of_memory


def why(error: BaseException) -> str:
    """The first line of what was said, without a traceback that would keep the memory."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def too_much(device: torch.device, reason: str) -> InputError:
    """The refusal."""
    return InputError(
        f"The memory of {device} is too small for one image at a time ({reason}).",
        hint="Choose a smaller --model, --precision bf16 or --device cpu, or end what else uses memory.",
    )


@contextmanager
def refused(device: torch.device) -> Iterator[None]:
    """Whatever runs out of memory within is refused in words."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_much(device, why(error)) from error
