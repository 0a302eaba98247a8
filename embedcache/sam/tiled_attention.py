"""Turns projected tokens into attention's output, piece by piece, so that no score leaves the processor's cache.

The pieces are one head and a few rows of queries of a whole image, or one window with all its heads. On a CPU
whose fused attention kernels do not use its bfloat16 instructions (most: they want AMX), plain matrix products do,
and they need none of the columns that ``folded`` adds.

The bias needs no gathering: ``q·R`` with all 2 · side − 1 relative positions R, last one first, is one small
matrix product, and ``q·Rh[qy, ky]`` and ``q·Rw[qx, kx]`` are views of it in which every row starts one place
earlier than the row before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embedcache.sam.attention import FusedAttention

_QUERIES = 256  # at a time, in a whole image


class TiledAttention(FusedAttention):
    """Attention by plain matrix products on pieces that fit the cache.

    Parameters
    ----------
    stock : nn.Module
        segment-anything's ``Attention`` with relative positions; its layers are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        positions = torch.cat([stock.rel_pos_h.detach().flip(0), stock.rel_pos_w.detach().flip(0)])
        self.register_buffer("positions", positions.t().contiguous())
        self.positions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape, in windows where the image is larger than ``side``."""
        B, H, W, _ = x.shape
        qkv = self.qkv(x).view(B, H, W, 3, self.num_heads, -1)
        out = torch.empty(B, H, W, *qkv.shape[4:], dtype=x.dtype, device=x.device)
        for image, result in zip(qkv, out, strict=True):
            if (self.side, self.side) == (H, W):
                self._image(image, result)
            else:
                self._windows(image, result)
        return self.proj(out.flatten(3))  # type: ignore[no-any-return]

    def _image(self, qkv: Tensor, out: Tensor) -> None:
        """All tokens attend to all: ``(H, W, 3, heads, d)`` to ``(H, W, heads, d)``."""
        q, k, v = qkv.permute(2, 3, 0, 1, 4).contiguous()
        rows = max(1, _QUERIES // self.side)
        for head in range(self.num_heads):
            keys, values = k[head].flatten(0, 1)[None], v[head].flatten(0, 1)[None]
            for top in range(0, self.side, rows):
                piece = q[head, top : top + rows]
                out[top : top + rows, :, head] = self._piece(piece[None], keys, values, top)[0]

    def _windows(self, qkv: Tensor, out: Tensor) -> None:
        """Tokens attend to those of their window: ``(H, W, 3, heads, d)`` to ``(H, W, heads, d)``."""
        H, W, _, heads, d = qkv.shape
        side = self.side
        whole = self.qkv.bias.view(3, heads, 1, 1, d).expand(3, heads, side, side, d).contiguous()
        for top in range(0, H, side):
            for left in range(0, W, side):
                real = qkv[top : top + side, left : left + side].permute(2, 3, 0, 1, 4)
                h, w = real.shape[2:4]
                tokens = real.contiguous() if h == w == side else whole.clone()
                tokens[:, :, :h, :w] = real
                k, v = tokens[1:].reshape(2, heads, side * side, d)
                attended = self._piece(tokens[0, :, :h, :w].contiguous(), k, v, 0)
                out[top : top + h, left : left + w] = attended.permute(1, 2, 0, 3)

    def _piece(self, q: Tensor, k: Tensor, v: Tensor, top: int) -> Tensor:
        """Some rows of queries against all keys.

        Parameters
        ----------
        q : Tensor
            ``(n, h, w, d)``, contiguous: rows ``top`` to ``top + h`` of the columns from 0.
        k, v : Tensor
            ``(n, side², d)``.
        top : int
            The row of the first query.

        Returns
        -------
        Tensor
            ``(n, h, w, d)``.
        """
        n, h, w, d = q.shape
        side = self.side
        flat = q.view(n, h * w, d)
        relative = torch.matmul(flat, self.positions)  # (n, h · w, 2 · (2 · side − 1))
        step = relative.shape[-1]
        shape, image = (n, h, w, side), h * w * step
        by_row = relative.as_strided(shape, (image, w * step - 1, step, 1), side - 1 - top)
        by_column = relative.as_strided(shape, (image, w * step, step - 1, 1), step // 2 + side - 1)
        bias = (by_row[..., :, None] + by_column[..., None, :]).view(n, h * w, side * side)
        scores = torch.baddbmm(bias, flat, k.transpose(1, 2), alpha=self.scale)
        return torch.bmm(scores.softmax(-1), v).view(q.shape)
