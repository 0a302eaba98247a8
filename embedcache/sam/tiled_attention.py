"""Turns projected tokens into attention's output, piece by piece, so that no score leaves the processor's cache.

The pieces are one head and a few rows of queries of a whole image, or one window with all its heads. On a CPU
whose fused attention kernels do not use its bfloat16 instructions (most: they want AMX), plain matrix products do,
and they need none of the columns that ``folded`` adds.

To ``torch.compile`` all of it is one operator, since it would only unroll the loops.

The bias needs no gathering: ``q·R`` with all 2 · side − 1 relative positions R, last one first, is one small
matrix product, and ``q·Rh[qy, ky]`` and ``q·Rw[qx, kx]`` are views of it in which every row starts one place
earlier than the row before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

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
        del self.table_h, self.table_w

    @property
    def side(self) -> int:
        """Tokens along the side of what attends to itself: a window, or the whole image."""
        return (self.positions.shape[1] // 2 + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape, in windows where the image is larger than ``side``."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        out = tiled_attention(qkv, self.qkv.bias, self.positions, self.scale)
        return self.proj(out)  # type: ignore[no-any-return]


@custom_op("embedcache::tiled_attention", mutates_args=())
def tiled_attention(qkv: Tensor, bias: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Attention within windows.

    Parameters
    ----------
    qkv : Tensor
        ``(B, H, W, 3, heads, d)``: queries, keys and values of every token.
    bias : Tensor
        ``(3 · heads · d,)``: those of a window's padding.
    positions : Tensor
        ``(d, 2 · (2 · side − 1))``: the relative positions of rows, last one first, then those of columns.
    scale : float
        Of the products of queries and keys.

    Returns
    -------
    Tensor
        ``(B, H, W, heads · d)``, contiguous.
    """
    B, H, W, _, heads, d = qkv.shape
    side = (positions.shape[1] // 2 + 1) // 2
    out = torch.empty(B, H, W, heads, d, dtype=qkv.dtype, device=qkv.device)
    for image, result in zip(qkv, out, strict=True):
        if side == H == W:
            _whole_image(image, positions, scale, result)
        else:
            _windows(image, bias, positions, scale, result)
    return out.flatten(3)


@tiled_attention.register_fake
def _(qkv: Tensor, bias: Tensor, positions: Tensor, scale: float) -> Tensor:
    B, H, W, _, heads, d = qkv.shape
    return qkv.new_empty(B, H, W, heads * d)


def _whole_image(qkv: Tensor, positions: Tensor, scale: float, out: Tensor) -> None:
    """All tokens attend to all: ``(H, W, 3, heads, d)`` to ``(H, W, heads, d)``."""
    q, k, v = qkv.permute(2, 3, 0, 1, 4).contiguous()
    heads, side, W, _ = q.shape
    rows = max(1, _QUERIES // W)
    buffers = _Buffers(q[0, :rows], 1, side)
    for head in range(heads):
        keys, values = k[head].flatten(0, 1)[None], v[head].flatten(0, 1)[None]
        for top in range(0, side, rows):
            piece = q[head, top : top + rows][None]
            out[top : top + rows, :, head] = buffers.attend(piece, keys, values, positions, scale, top)[0]


def _windows(qkv: Tensor, bias: Tensor, positions: Tensor, scale: float, out: Tensor) -> None:
    """Tokens attend to those of their window: ``(H, W, 3, heads, d)`` to ``(H, W, heads, d)``."""
    H, W, _, heads, d = qkv.shape
    side = (positions.shape[1] // 2 + 1) // 2
    padding = bias.view(3, heads, 1, 1, d).expand(3, heads, side, side, d)
    tokens = padding.contiguous()
    buffers = _Buffers(tokens[0, 0], heads, side)
    for top in range(0, H, side):
        for left in range(0, W, side):
            real = qkv[top : top + side, left : left + side].permute(2, 3, 0, 1, 4)
            h, w = real.shape[2:4]
            tokens[:, :, h:] = padding[:, :, h:]
            tokens[:, :, :, w:] = padding[:, :, :, w:]
            tokens[:, :, :h, :w] = real
            k, v = tokens[1:].view(2, heads, side * side, d)
            attended = buffers.attend(tokens[0, :, :h, :w].contiguous(), k, v, positions, scale, 0)
            out[top : top + h, left : left + w] = attended.permute(1, 2, 0, 3)


class _Buffers:
    """Memory that is written again for every piece: fresh memory would cost as much time as the work itself.

    Parameters
    ----------
    like : Tensor
        ``(h, w, d)``: as many queries as a piece has at most.
    n : int
        Heads in a piece.
    side : int
        Rows and columns of keys.
    """

    def __init__(self, like: Tensor, n: int, side: int) -> None:
        h, w, d = like.shape
        self._side = side
        self._relative = like.new_empty(n * h * w * 2 * (2 * side - 1))
        self._scores = like.new_empty(n * h * w * side * side)
        self._shares = torch.empty_like(self._scores)
        self._out = like.new_empty(n * h * w * d)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, top: int) -> Tensor:
        """Some rows of queries against all keys.

        Parameters
        ----------
        q : Tensor
            ``(n, h, w, d)``, contiguous: rows ``top`` to ``top + h``, from the first column on.
        k, v : Tensor
            ``(n, side², d)``.
        positions, scale : Tensor, float
            As of :func:`tiled_attention`.
        top : int
            The row of the first query.

        Returns
        -------
        Tensor
            ``(n, h, w, d)``; overwritten by the next call.
        """
        (n, h, w, d), side = q.shape, self._side
        step = 2 * (2 * side - 1)
        flat = q.view(n, h * w, d)
        relative = _part(self._relative, n, h * w, step)
        torch.bmm(flat, positions.expand(n, d, step), out=relative)
        shape, image = (n, h, w, side), h * w * step
        by_row = relative.as_strided(shape, (image, w * step - 1, step, 1), side - 1 - top)
        by_column = relative.as_strided(shape, (image, w * step, step - 1, 1), step // 2 + side - 1)
        scores, shares = (_part(buffer, n, h * w, side * side) for buffer in (self._scores, self._shares))
        torch.add(by_row[..., :, None], by_column[..., None, :], out=scores.view(n, h, w, side, side))
        torch.baddbmm(scores, flat, k.transpose(1, 2), alpha=scale, out=scores)
        torch.softmax(scores, -1, out=shares)
        return torch.bmm(shares, v, out=_part(self._out, n, h * w, d)).view(q.shape)


def _part(buffer: Tensor, *shape: int) -> Tensor:
    """The beginning of a buffer, as a tensor of a shape."""
    size = 1
    for length in shape:
        size *= length
    return buffer[:size].view(shape)
