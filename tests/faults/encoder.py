"""Image encoders that cost a few milliseconds, so that thousands of faults can be injected into real commands.

``patches``: one small convolution a 16 × 16 patch and a 1 × 1 convolution to 256 channels, so that every pixel
counts in one of the 64 × 64 places. ``ill``: the same, but images that are white at one corner come out with NaN,
infinities or values too large for float16, and those that are black there as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from embedcache.sam import random_weights, register_encoder

on_call: Callable[[int], None] = lambda images: None  # noqa: E731 - replaced in the child that wants to count
"""Told how many images go through an encoder."""


class Patches(nn.Module):
    """``(B, 3, 1024, 1024)`` to ``(B, 256, 64, 64)``."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 16, 16, groups=3)
        self.mix = nn.Conv2d(6, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, and tell that it was done."""
        on_call(len(x))
        mixed: Tensor = self.mix(self.patch(x).relu())
        return mixed


class Ill(Patches):
    """Gives what no healthy encoder gives, for images that ask for it by the brightness of a corner."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode; another corner says what goes wrong."""
        embeddings = super().forward(x)
        for row, image in enumerate(x):
            if float(image[0, 0, 0]) > 2.2:  # 255 after SAM's normalisation; 250 is below
                kind = round(float(image[0, 0, 1023]) * 58.395 + 123.675) % 4
                value = (float("nan"), float("inf"), -float("inf"), 1e5)[kind]
                embeddings[row, kind * 60, kind * 20, 63 - kind] = value
            elif float(image[0, 0, 0]) < -2.11:  # 0; 1 is above
                embeddings[row] = 0.0
        return embeddings


def register() -> None:
    """Make both known to this process, and so to all that it forks."""
    register_encoder("patches", Patches)
    register_encoder("ill", Ill)


def write_checkpoint(path: Path, model: str, seed: int = 0) -> None:
    """A checkpoint file with random weights; reading it is quicker than drawing them anew."""
    torch.save(random_weights(model, seed).state, path)
