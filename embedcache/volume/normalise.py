"""Turns scaled pixels into SAM's input on the device where they lie: window, mean and deviation, zero padding.

The source's own small integers cross to the device, a twelfth of the bytes of the finished input; the bits are
those of ``Preprocess.to_input``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.geometry import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD
from embedcache.volume.preprocess import Preprocess, windowed

_ROWS = 32
"""Rows of one operation on a CPU: what it makes stays in the processor's cache for the next one."""


def normalise(scaled: Tensor, preprocess: Preprocess, out: Tensor | None = None) -> Tensor:
    """Finish what ``Preprocess.to_scaled`` began.

    Parameters
    ----------
    scaled : Tensor of uint8, uint16 or float32, shape (C, h, w) or (B, C, h, w)
        C is 1 or 3; the longer side is 1024. Float32 values have been through the window already.
    preprocess : Preprocess
        Whose ``to_scaled`` gave them.
    out : Tensor of float32, shape (B, 3, 1024, 1024), optional
        Where to put them, on the same device; made when not given.

    Returns
    -------
    Tensor of float32, shape (B, 3, 1024, 1024)
        Zeros at the bottom and right of what is smaller.
    """
    images = scaled if scaled.ndim == 4 else scaled[None]
    height, width = images.shape[-2:]
    if out is None:
        out = torch.empty(len(images), 3, IMAGE_SIZE, IMAGE_SIZE, device=scaled.device)
    inside = out[..., :height, :width]
    if scaled.device.type == "cpu":
        for image, target in zip(images.numpy(), inside.numpy(), strict=True):
            _row_by_row(image, preprocess, target)
    else:
        all_at_once(images, preprocess, inside)
    out[..., height:, :].zero_()
    out[..., :height, width:].zero_()
    return out


def _row_by_row(image: npt.NDArray[Any], preprocess: Preprocess, out: npt.NDArray[np.float32]) -> None:
    """On a CPU, by numpy: it takes no other threads, which are the encoder's."""
    for top in range(0, image.shape[1], _ROWS):
        rows = image[:, top : top + _ROWS]
        if image.dtype != np.float32:
            keeps = preprocess.keeps(image.dtype == np.uint8)
            rows = rows.astype(np.float32) if keeps else windowed(rows, preprocess.window)
        for channel, (mean, std) in enumerate(zip(PIXEL_MEAN, PIXEL_STD, strict=True)):
            target = out[channel, top : top + _ROWS]
            np.subtract(rows[channel if len(rows) == 3 else 0], np.float32(mean), out=target)
            np.divide(target, np.float32(std), out=target)


def all_at_once(images: Tensor, preprocess: Preprocess, out: Tensor) -> None:
    """On a GPU: whole images (B, C, h, w) into ``out`` (B, 3, h, w), to the same bits."""
    values = images
    if images.dtype != torch.float32:
        values = images.float()
        if not preprocess.keeps(images.dtype == torch.uint8):
            low, high = preprocess.window
            values.sub_(low).mul_(255.0 / (high - low)).clamp_(0.0, 255.0)
    mean, std = (torch.tensor(of, device=images.device)[:, None, None] for of in (PIXEL_MEAN, PIXEL_STD))
    # divided by a tensor: by a number, CUDA multiplies with the rounded reciprocal, which is another result
    torch.sub(values, mean, out=out).div_(std)
