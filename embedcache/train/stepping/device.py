"""Turns ``--device`` and ``--amp`` into where a training computes, and with which arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from embedcache.errors import ConfigError


def training_device(text: str) -> torch.device:
    """The device to train on; ``auto`` takes a GPU where there is one.

    Raises
    ------
    ConfigError
        When the name means nothing or the device is not there.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(f"--device is {text!r}; it must be auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {text!r}; only cpu and cuda are supported.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device is {text!r}, but this machine has {torch.cuda.device_count()} CUDA devices."
        )
    return device


def require_amp(amp: str, device: torch.device) -> None:
    """Refuse an arithmetic that a device does not have.

    Raises
    ------
    ConfigError
    """
    if amp == "tf32" and device.type == "cpu":
        raise ConfigError("--amp tf32 is arithmetic of GPUs; this training is on a CPU.")
    if amp == "bf16" and not _has_bf16(device):
        raise ConfigError(f"--amp bf16: this {device.type} has no bfloat16 arithmetic of its own.")


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


@contextmanager
def tf32(amp: str) -> Iterator[None]:
    """TF32 in products of matrices and convolutions for the block, when it was asked for."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    wanted = amp == "tf32"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = wanted, wanted
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Bfloat16(nn.Module):
    """A model whose forward pass computes in bfloat16 where torch's autocast holds that for safe.

    Its weights, their gradients and its answers are float32.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As the model's."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return self.model(*arguments, **named)
