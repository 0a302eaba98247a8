"""Turns image tokens and a vector for each wanted mask into mask logits of 256 × 256, and these into tile pixels.

segment-anything doubles the 64 × 64 grid twice with transposed convolutions whose kernel is as wide as their step.
So no two of their outputs meet: each is a linear layer of one token, and all can stay tokens, whose channels lie
together. Only the finished masks are put into the order of pixels.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, unflatten
from torch.nn.functional import gelu, interpolate, layer_norm, linear

from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE, LOW_RES_SIZE, Tile


def upscale(
    mask_decoder: Any, keys: Tensor, vectors: Tensor, upscaling: Literal["stock", "tokens"]
) -> Tensor:
    """Upscale images and compare them with the masks' vectors.

    Parameters
    ----------
    mask_decoder : MaskDecoder
        Whose ``output_upscaling`` is used.
    keys : Tensor
        ``(Q, 4096, 256)``.
    vectors : Tensor
        ``(Q, M, 32)``.
    upscaling : {"stock", "tokens"}
        See :class:`~embedcache.sam.decoding.way.Way`.

    Returns
    -------
    Tensor
        ``(Q, M, 256, 256)``.
    """
    if upscaling == "tokens":
        return _tokens(mask_decoder.output_upscaling, keys, vectors)
    upscaled = mask_decoder.output_upscaling(unflatten(keys.mT, 2, EMBEDDING_SHAPE[1:]))
    return unflatten(vectors @ upscaled.flatten(2), 2, upscaled.shape[2:])


def upscale_logits(low_res_logits: Tensor, tile: Tile) -> Tensor:
    """Scale mask logits up to a tile's own pixels: SAM's ``postprocess_masks``.

    Parameters
    ----------
    low_res_logits : Tensor
        ``(..., 256, 256)``, as the decoder returns them.
    tile : Tile
        Whose pixels are wanted, as the encoder saw it.

    Returns
    -------
    Tensor
        ``(..., tile.seen.height, tile.seen.width)``.
    """
    tile = tile.seen
    leading = low_res_logits.shape[:-2]
    masks = (
        leading[-1] if leading else 1
    )  # channels, as SAM has them: torch rounds alike only in the same layout
    height, width = tile.input_size
    frame = interpolate(
        low_res_logits.reshape(-1, masks, LOW_RES_SIZE, LOW_RES_SIZE),
        (IMAGE_SIZE, IMAGE_SIZE),
        mode="bilinear",
        align_corners=False,
    )
    scaled = interpolate(
        frame[..., :height, :width], (tile.height, tile.width), mode="bilinear", align_corners=False
    )
    return scaled.reshape(*leading, tile.height, tile.width)


def _tokens(layers: Any, keys: Tensor, vectors: Tensor) -> Tensor:
    first, norm, _, second, _ = layers
    halves = _doubled(first, keys)  # (Q, 4096 · 4, 64): of each token (row, column) of 2 × 2
    halves = gelu(layer_norm(halves, halves.shape[-1:], norm.weight, norm.bias, norm.eps))
    quarters = gelu(_doubled(second, halves))  # (Q, 4096 · 4 · 4, 32)
    masks = vectors @ quarters.mT
    masks = unflatten(masks, 2, (*EMBEDDING_SHAPE[1:], 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return masks.flatten(5, 7).flatten(2, 4)


def _doubled(convolution: Any, tokens: Tensor) -> Tensor:
    """``(Q, n, c)`` to ``(Q, 4 n, d)``: a transposed convolution of 2 × 2 by steps of 2."""
    weight = convolution.weight.permute(2, 3, 1, 0)  # row, column, to, from
    channels = weight.shape[2]
    found = linear(tokens, weight.flatten(0, 2), convolution.bias.repeat(4))
    return unflatten(found, 2, (4, channels)).flatten(1, 2)
