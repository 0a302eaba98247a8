"""Turns prompt tokens and images into what the two-way transformer makes of them, in any way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from embedcache.sam.decoding.plain import ImageTokens, attend


def transform(
    transformer: Any,
    tokens: Tensor,
    takes_part: Tensor | None,
    images: ImageTokens,
    later: Callable[[Tensor], ImageTokens],
    *,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    """Do what segment-anything's ``TwoWayTransformer`` does.

    Parameters
    ----------
    transformer : TwoWayTransformer
        segment-anything's own.
    tokens : Tensor
        ``(Q, T, 256)``: the decoder's own tokens, then those of the prompts.
    takes_part : Tensor of bool or None
        ``(Q, T)``; None when all do.
    images : ImageTokens
        What the first layer sees.
    later : callable
        From ``(Q, 4096, 256)`` to what the layers after it see.
    wanted : int
        How many tokens, from the first, are read in the end.

    Returns
    -------
    tokens : Tensor
        ``(Q, wanted, 256)``.
    keys : Tensor
        ``(Q, 4096, 256)``: the images, as the prompts changed them.
    """
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = attend(layer.self_attn, queries, queries, queries, takes_part)
        else:
            asked = queries + tokens
            queries = queries + attend(layer.self_attn, asked, asked, queries, takes_part)
        queries = layer.norm1(queries)
        queries = layer.norm2(queries + images.answer(layer.cross_attn_token_to_image, queries + tokens))
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(
            images.update(layer.cross_attn_image_to_token, queries + tokens, queries, takes_part)
        )
        images = later(keys)
    queries = queries[:, :wanted]
    read = images.answer(transformer.final_attn_token_to_image, queries + tokens[:, :wanted])
    return transformer.norm_final_attn(queries + read), keys
