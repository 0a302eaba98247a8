"""Turns the ViT's attention into torch's fused attention, with the same result.

SAM's image encoder adds a decomposed relative position bias to the attention's logits:
``scale · q·k + q·Rh[qy, ky] + q·Rw[qx, kx]``. segment-anything writes all of them out, four times over. Two exact
ways to avoid that:

``mask``
    The bias is handed to ``scaled_dot_product_attention`` as its additive mask. Fastest for float32 on a CPU.
``folded``
    The bias is itself a dot product: ``q·Rh[qy, ky]`` is the vector of all ``q·Rh[qy, ·]`` times a one-hot vector
    of ky. So the queries get 2 · side more columns with these vectors (divided by ``scale``), the keys get the
    one-hot vectors, and no mask is needed at all. Fastest for bfloat16, and it needs the least memory.

The keys of a window's padding stay in the softmax, as in segment-anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention

from embedcache.errors import InputError

VARIANTS = ("mask", "folded", "stock")
"""Ways to compute the same attention; ``stock`` is segment-anything's own code."""

_COLUMN_MULTIPLE = 8  # fused kernels want head sizes that are multiples of this
_MASK_BYTES = 256 * 2**20  # most memory that the mask of one call may take


def replace_attention(encoder: Any, variant: str) -> None:
    """Replace the attention of all blocks of an ``ImageEncoderViT`` by a variant; the weights are shared.

    Must be called while the weights are float32: tables are made from them before they are rounded.

    Raises
    ------
    InputError
        When there is no such variant.
    """
    if variant not in VARIANTS:
        raise InputError(f"There is no attention variant {variant!r}.", hint=f"Known: {', '.join(VARIANTS)}.")
    if variant == "stock":
        return
    kind = MaskAttention if variant == "mask" else FoldedAttention
    for block in encoder.blocks:
        block.attn = kind(block.attn)


class FusedAttention(nn.Module):
    """What both variants share: projections, heads, and tables of relative positions.

    Parameters
    ----------
    stock : nn.Module
        segment-anything's ``Attention`` with relative positions; its layers are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.num_heads: int = stock.num_heads
        self.scale: float = stock.scale
        self.qkv: nn.Module = stock.qkv
        self.proj: nn.Module = stock.proj
        self.register_buffer("table_h", _table(stock.rel_pos_h))
        self.register_buffer("table_w", _table(stock.rel_pos_w))
        self.table_h: Tensor
        self.table_w: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(B, side, side, C)`` to the same shape."""
        B, H, W, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, H * W, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = self.attend(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(B, H, W, -1))  # type: ignore[no-any-return]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of ``(B, heads, side², d)`` queries, keys and values; the same shape."""
        raise TypeError("FusedAttention has no attend of its own; use MaskAttention or FoldedAttention.")

    def relative(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """``q·Rh`` and ``q·Rw``: each ``(B, heads, side, side, side)``, the last axis the key's row or column."""
        side = len(self.table_h)
        grid = q.reshape(*q.shape[:2], side, side, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, self.table_h)
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, self.table_w)
        return rows, columns


class MaskAttention(FusedAttention):
    """The bias as an additive mask, for some heads at a time so that the mask stays small."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of ``(B, heads, side², d)`` queries, keys and values; the same shape."""
        B, heads, N, _ = q.shape
        step = max(1, min(heads, _MASK_BYTES // (B * N * N * q.element_size())))
        pieces = [
            self._attend(q[:, i : i + step], k[:, i : i + step], v[:, i : i + step])
            for i in range(0, heads, step)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns = self.relative(q)
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(*q.shape[:3], k.shape[2])
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)


class FoldedAttention(FusedAttention):
    """The bias as further columns of the queries and keys.

    Parameters
    ----------
    stock : nn.Module
        segment-anything's ``Attention`` with relative positions, still in float32.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        # The fused kernel multiplies these columns by scale too. Dividing the float32 table rounds but once.
        self.table_h = self.table_h / self.scale
        self.table_w = self.table_w / self.scale
        side = len(self.table_h)
        position = torch.arange(side * side)
        keys = torch.cat([one_hot(position // side, side), one_hot(position % side, side)], dim=1)
        columns = self.table_h.shape[-1] + 2 * side
        self.padding = -columns % _COLUMN_MULTIPLE
        self.register_buffer("key_columns", pad(keys, (0, self.padding)).to(self.table_h.dtype))
        self.key_columns: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of ``(B, heads, side², d)`` queries, keys and values; the same shape."""
        B, heads, _, d = q.shape
        rows, columns = (part.flatten(2, 3) for part in self.relative(q))
        q_long = pad(torch.cat([q, rows, columns], dim=-1), (0, self.padding))
        k_long = torch.cat([k, self.key_columns.expand(B, heads, -1, -1)], dim=-1)
        # Fused kernels want values as long as the keys; the added zeros come out as zeros and are cut off
        v_long = pad(v, (0, q_long.shape[-1] - d))
        return scaled_dot_product_attention(q_long, k_long, v_long, scale=self.scale)[..., :d]


def _table(rel_pos: Tensor) -> Tensor:
    """``(2·side − 1, d)`` embeddings of relative positions to ``(side, side, d)``, by query and key position."""
    side = (len(rel_pos) + 1) // 2
    position = torch.arange(side)
    return rel_pos.detach()[position[:, None] - position[None, :] + side - 1]
