"""Turns segment-anything's image encoder into one that gives the same embeddings faster, from the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedcache.errors import InputError
from embedcache.sam.attention import FlexAttention, FoldedAttention, FusedAttention, MaskAttention
from embedcache.sam.tiled_attention import TiledAttention

VARIANTS = ("folded", "mask", "flex", "tiled", "stock")
"""Ways to compute the same attention; ``stock`` is segment-anything's own code."""

_GLOBAL: dict[str, type[FusedAttention]] = {
    "folded": FoldedAttention,
    "mask": MaskAttention,
    "flex": FlexAttention,
    "tiled": TiledAttention,
}
_WINDOW = _GLOBAL | {"flex": FoldedAttention}


def make_fast(encoder: Any, variant: str, revision: int) -> None:
    """Replace the slow parts of an ``ImageEncoderViT``; the weights are shared.

    Must be called while the weights are float32: tables are made from them before they are rounded.

    Parameters
    ----------
    encoder : nn.Module
        segment-anything's.
    variant : str
        One of :data:`VARIANTS`.
    revision : int
        2, or 1 for the bits of stores that were begun before there was a 2: windows' padding is projected too,
        and the neck normalises in the precision of everything else.

    Raises
    ------
    InputError
        When there is no such variant.
    """
    if variant not in VARIANTS:
        raise InputError(f"There is no attention variant {variant!r}.", hint=f"Known: {', '.join(VARIANTS)}.")
    if variant == "stock":
        return
    for position, block in enumerate(encoder.blocks):
        attention = (_WINDOW if block.window_size else _GLOBAL)[variant](block.attn)
        if revision == 1:
            block.attn = attention
        else:
            encoder.blocks[position] = Block(block, attention)
    if revision > 1:
        encoder.patch_embed = PatchEmbed(encoder.patch_embed)
        first, norm, second, last_norm = encoder.neck
        encoder.neck = nn.Sequential(Planes(), first, ChannelNorm(norm), second, ChannelNorm(last_norm))


class PatchEmbed(nn.Module):
    """segment-anything's patch embedding, its tokens one after the other in memory.

    segment-anything leaves the convolution's planes as they are and only names the axes otherwise; then every
    addition to the tokens, and every norm of them, goes across memory.

    Parameters
    ----------
    stock : nn.Module
        The ``PatchEmbed`` whose weights are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.proj: nn.Module = stock.proj

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, 16 · H, 16 · W)`` to ``(B, H, W, C)``."""
        tokens: Tensor = self.proj(x).permute(0, 2, 3, 1)
        return tokens.contiguous()


class Planes(nn.Module):
    """Channels as planes in memory: what segment-anything's neck is given, so that it rounds in the same order."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)``, contiguous."""
        return x.contiguous()


class ChannelNorm(nn.Module):
    """segment-anything's ``LayerNorm2d``, computed in float32 whatever precision comes in and goes out.

    Parameters
    ----------
    stock : nn.Module
        The ``LayerNorm2d`` whose weights are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight: Tensor = stock.weight
        self.bias: Tensor = stock.bias
        self.eps: float = stock.eps

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and dtype."""
        wide = x.float()
        centred = wide - wide.mean(1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        weight, bias = self.weight.float()[:, None, None], self.bias.float()[:, None, None]
        return (weight * normed + bias).to(x.dtype)


class Block(nn.Module):
    """A transformer block without window partition: its attention knows where its windows are.

    Parameters
    ----------
    stock : nn.Module
        segment-anything's ``Block``; its layers are taken over.
    attention : FusedAttention
        What attends instead of the block's own.
    """

    def __init__(self, stock: Any, attention: FusedAttention) -> None:
        super().__init__()
        self.norm1: nn.Module = stock.norm1
        self.attn = attention
        self.norm2: nn.Module = stock.norm2
        self.mlp: nn.Module = stock.mlp

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]
