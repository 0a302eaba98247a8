"""Turns embeddings into eight bits a value and back: one symmetric scale per embedding and channel.

``value = scale · q`` with whole ``q`` from −127 to 127, rounded half to even. It is computed where the embedding
is, so that a GPU's embeddings cross to the host at a quarter of their size; every device gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LEVELS = 127
"""Largest stored value; −128 is the fill of tiles that are not there."""

NO_VALUE = -128

_SMALLEST = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False)
class Quantised:
    """One quantised embedding in main memory.

    Parameters
    ----------
    values : ndarray of int8, shape (256, 64, 64)
    scales : ndarray of float32, shape (256,)
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


def quantise(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a batch on the device on which it is.

    A channel whose scale would be zero, or too small for a normal float32, is stored as zeros under the scale 0.
    One with a value that is not finite gets a scale that is not finite, so that it can be refused.

    Parameters
    ----------
    embeddings : Tensor of floats, shape (B, 256, 64, 64)

    Returns
    -------
    values : Tensor of int8, shape (B, 256, 64, 64)
    scales : Tensor of float32, shape (B, 256)
    """
    exact = embeddings.float()
    # by a tensor: by a number, CUDA multiplies with the rounded reciprocal, which is another result
    scales = exact.abs().amax(dim=(-2, -1)) / torch.tensor(LEVELS, dtype=exact.dtype, device=exact.device)
    scales = torch.where(scales < _SMALLEST, torch.zeros_like(scales), scales)
    usable = torch.isfinite(scales) & (scales > 0)
    divisors = torch.where(usable, scales, torch.ones_like(scales))[..., None, None]
    steps = torch.where(usable[..., None, None], exact / divisors, torch.zeros_like(exact))
    return steps.round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scales


def dequantise(values: Tensor, scales: Tensor) -> Tensor:
    """Float32 embeddings of quantised ones; any leading dimensions, on the device on which they are."""
    return values.float().mul_(scales[..., None, None])
