"""Turns the ViT's attention into forms that never hold all of its position bias, with the same result.

SAM's image encoder adds a decomposed relative position bias to the attention's logits:
``scale · q·k + q·Rh[qy, ky] + q·Rw[qx, kx]``. segment-anything writes all of them out, four times over. Exact ways
to avoid that:

``mask``
    The bias is handed to ``scaled_dot_product_attention`` as its additive mask, for some heads at a time.
``folded``
    The bias is itself a dot product: ``q·Rh[qy, ky]`` is the vector of all ``q·Rh[qy, ·]`` times a one-hot vector
    of ky. So the queries get 2 · side more columns with these vectors (divided by ``scale``), the keys get the
    one-hot vectors, and no mask is needed at all. For GPUs, and for CPUs with matrix units for bfloat16.
``flex``
    ``flex_attention`` adds the bias inside its kernel; windows are folded. For GPUs; it must be compiled.
``tiled``
    Plain matrix products and softmax for one head and a few rows of queries, or one window, at a time, so that
    all in between stays in the cache: :mod:`embedcache.sam.tiled_attention`. For CPUs.

The keys of a window's padding stay in the softmax, as in segment-anything, where they are the projection of zeros:
its bias. So only real tokens are projected.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention

_COLUMN_MULTIPLE = 8  # fused kernels want head sizes that are multiples of this
_MASK_BYTES = 256 * 2**20  # most memory that the mask of one call may take


class FusedAttention(nn.Module):
    """What all variants share: projections, heads, windows, and tables of relative positions.

    Parameters
    ----------
    stock : nn.Module
        segment-anything's ``Attention`` with relative positions, still in float32; its layers are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.num_heads: int = stock.num_heads
        self.scale: float = stock.scale
        self.qkv: nn.Linear = stock.qkv
        self.proj: nn.Linear = stock.proj
        self.register_buffer("table_h", _table(stock.rel_pos_h))
        self.register_buffer("table_w", _table(stock.rel_pos_w))
        self.table_h: Tensor
        self.table_w: Tensor

    @property
    def side(self) -> int:
        """Tokens along the side of what attends to itself: a window, or the whole image."""
        return len(self.table_h)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape, in windows where the image is larger than ``side``."""
        B, H, W, _ = x.shape
        q, k, v = into_windows(self.qkv(x), self.qkv.bias, self.side, self.num_heads)
        out = from_windows(self.attend(q, k, v), B, H, W)
        return self.proj(out)  # type: ignore[no-any-return]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of ``(B, heads, side², d)`` queries, keys and values; the same shape."""
        raise TypeError("FusedAttention has no attend of its own; use one of its variants.")

    def relative(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """``q·Rh`` and ``q·Rw``: each ``(B, heads, side, side, side)``, the last axis the key's row or column."""
        grid = q.reshape(*q.shape[:2], self.side, self.side, -1)
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
        position = torch.arange(self.side**2)
        rows, columns = position // self.side, position % self.side
        keys = torch.cat([one_hot(rows, self.side), one_hot(columns, self.side)], dim=1)
        self.padding = -(self.table_h.shape[-1] + 2 * self.side) % _COLUMN_MULTIPLE
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


class FlexAttention(FusedAttention):
    """The bias added to each score inside ``flex_attention``'s kernel, for one large side."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of ``(B, heads, side², d)`` queries, keys and values; the same shape."""
        rows, columns = (part.flatten(2, 3) for part in self.relative(q))
        side = self.side

        def with_bias(score: Tensor, b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + rows[b, head, query, key // side] + columns[b, head, query, key % side]

        on_gpu_alone = q.is_cuda and not torch.compiler.is_compiling()
        flex: Any = _compiled_flex() if on_gpu_alone else flex_attention
        out: Tensor = flex(q, k, v, score_mod=with_bias, scale=self.scale)
        return out


@cache
def _compiled_flex() -> Any:
    """``flex_attention`` by itself; uncompiled it would write all scores out."""
    return torch.compile(flex_attention, dynamic=False)


def into_windows(qkv: Tensor, bias: Tensor, side: int, heads: int) -> Tensor:
    """Projected tokens as queries, keys and values of each window; what pads the last windows is the bias.

    Parameters
    ----------
    qkv : Tensor
        ``(B, H, W, 3 · heads · d)``.
    bias : Tensor
        ``(3 · heads · d,)``, the projection of zeros.
    side : int
        Tokens along the side of a window.
    heads : int
        Number of attention heads.

    Returns
    -------
    Tensor
        ``(3, B · windows, heads, side², d)``.
    """
    B, H, W, columns = qkv.shape
    below, right = -H % side, -W % side
    if right:
        qkv = torch.cat([qkv, bias.expand(B, H, right, columns)], dim=2)
    if below:
        qkv = torch.cat([qkv, bias.expand(B, below, W + right, columns)], dim=1)
    down, across = (H + below) // side, (W + right) // side
    parts = qkv.reshape(B, down, side, across, side, 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    return parts.reshape(3, B * down * across, heads, side * side, -1)


def from_windows(out: Tensor, B: int, H: int, W: int) -> Tensor:
    """``(B · windows, heads, side², d)`` to ``(B, H, W, heads · d)``, the padding cut off."""
    _, heads, area, d = out.shape
    side = int(area**0.5)
    down, across = -(-H // side), -(-W // side)
    grid = out.reshape(B, down, across, heads, side, side, d).permute(0, 1, 4, 2, 5, 3, 6)
    return grid.reshape(B, down * side, across * side, heads * d)[:, :H, :W]


def _table(rel_pos: Tensor) -> Tensor:
    """``(2·side − 1, d)`` embeddings of relative positions to ``(side, side, d)``, by query and key position."""
    side = (len(rel_pos) + 1) // 2
    position = torch.arange(side)
    return rel_pos.detach()[position[:, None] - position[None, :] + side - 1]
