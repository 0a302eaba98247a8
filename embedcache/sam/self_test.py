"""Turns an encoder and its weights into a verdict: whether it gives, on this machine, what segment-anything gives.

One image goes through segment-anything's own code in float32, and through the encoder. In float32 they must agree
to 2e-6 (relative L2); in bfloat16 the encoder must be no farther away than segment-anything's own code in
bfloat16, times 1.2. On a CPU, where the whole of segment-anything takes up to a minute, the image goes through the
patches, the first block with windows, the first without, and the neck, unless the encoder was compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from embedcache.geometry import IMAGE_SIZE
from embedcache.sam.device import Precision
from embedcache.sam.encoder import Encoder
from embedcache.sam.numerics import OWN, STOCK
from embedcache.sam.parts import encoder_shape
from embedcache.sam.weights import Weights

FLOAT32_LIMIT = 2e-6
BF16_FACTOR = 1.2


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found.

    Parameters
    ----------
    error : float
        Relative L2 distance of the encoder's embedding from segment-anything's in float32.
    limit : float
        The largest error that passes.
    passed : bool
        Whether it does.
    """

    error: float
    limit: float
    passed: bool


def self_test(encoder: Encoder, weights: Weights, say: Callable[[str], None]) -> SelfTest:
    """Compare an encoder with segment-anything's own code on one image, on the encoder's device.

    Parameters
    ----------
    encoder : Encoder
        Of any variant; its count of images goes up by one.
    weights : Weights
        Those that it was made from.
    say : callable
        Told the outcome, in one line.

    Returns
    -------
    SelfTest
        A registered encoder is its own reference and always passes.
    """
    if encoder.numerics["attention"] == OWN:
        return SelfTest(error=0.0, limit=0.0, passed=True)
    with encoder.computing() as module:
        short = module is not None and encoder.device.type == "cpu"
    first_whole = encoder_shape(weights.model_type).global_blocks[0]
    give = partial(_shortened, whole=first_whole) if short else Encoder.__call__
    image = proof_image()
    wanted = give(_stock(weights, encoder, "fp32"), image)
    limit = FLOAT32_LIMIT
    if encoder.precision == "bf16":
        limit = BF16_FACTOR * relative_distance(give(_stock(weights, encoder, "bf16"), image), wanted)
    error = relative_distance(give(encoder, image), wanted)
    verdict = SelfTest(error=error, limit=limit, passed=error <= limit)  # NaN passes nothing
    how = "agrees" if verdict.passed else "does not agree"
    say(f"The encoder {how} with segment-anything: error {error:.2g}, at most {limit:.2g} allowed.")
    return verdict


def _stock(weights: Weights, encoder: Encoder, precision: Precision) -> Encoder:
    numerics = {"attention": STOCK, "compiled": False, "batch": 1}
    return Encoder(weights, device=encoder.device, precision=precision, numerics=numerics)


def _shortened(encoder: Encoder, image: Tensor, *, whole: int) -> Tensor:
    """What comes out where only the first block, and the first without windows, are there."""
    with encoder.computing() as parts:
        vit: Any = parts
        dtype = next(vit.parameters()).dtype
        tokens = vit.patch_embed(image.to(device=encoder.device, dtype=dtype)) + vit.pos_embed
        for position in dict.fromkeys((0, whole)):
            tokens = vit.blocks[position](tokens)
        found: Tensor = vit.neck(tokens.permute(0, 3, 1, 2)).float().cpu()
    return found


def proof_image() -> Tensor:
    """``(1, 3, 1024, 1024)`` float32: waves and noise, with zeros at the bottom as SAM pads."""
    y, x = torch.meshgrid(*2 * [torch.linspace(0, 1, IMAGE_SIZE)], indexing="ij")
    image = torch.stack([torch.sin(9 * x), torch.cos(7 * y), x * y])
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    image += noise * x
    image[:, IMAGE_SIZE * 7 // 10 :] = 0
    return image[None]


def relative_distance(found: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference over the L2 norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
