"""Turns tokens and one image for each of their rows into what they learn of each other, not projecting images.

Attention projects the 4096 tokens of an image to 128 channels and compares them with T prompt tokens in 8 heads.
The projections are linear, so they can be applied to the prompt tokens instead: ``(W x) · q = x · (Wᵀ q)``. Then
there are 8 T columns of 256 channels, and no tensor of the size of the projected image. Biases: that of the keys
adds the same number to all scores of a query and drops out of the softmax; that of the values passes through, as
shares sum to one. The two attentions are autograd functions of their own, which keep of the image only itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, unflatten
from torch.autograd.function import once_differentiable


class AbsorbedImages:
    """An image for each prompt, none of whose tokens are projected.

    Parameters
    ----------
    tokens : Tensor
        ``(Q, 4096, 256)``.
    position : Tensor
        ``(4096, 256)``: where they lie.
    dense : Tensor, optional
        ``(256,)``, the same for all tokens: what "no mask" adds to an image. Kept apart, so that images from a
        store, which need no gradient, get none.
    """

    def __init__(self, tokens: Tensor, position: Tensor, dense: Tensor | None = None) -> None:
        self._tokens = tokens
        self._position = position
        self._dense = dense

    def answer(self, attention: Any, queries: Tensor) -> Tensor:
        """See :class:`~embedcache.sam.decoding.plain.ImageTokens`."""
        heads = attention.num_heads
        q = attention.q_proj(queries).unflatten(-1, (heads, -1))
        columns = _by_head(q / math.sqrt(q.shape[-1]), attention.k_proj.weight.unflatten(0, (heads, -1)))
        # The keys' bias drops out; its gradient is zero, not absent: an optimiser treats the two unlike
        columns = columns + 0.0 * attention.k_proj.bias.sum()
        seen: Tensor = _answer(columns.flatten(1, 2), self._tokens, self._position)
        if self._dense is not None:
            seen = seen + self._dense
        values = attention.v_proj.weight.unflatten(0, (heads, -1)).mT
        read = _by_head(unflatten(seen, 1, (heads, -1)).transpose(1, 2), values)
        output: Tensor = attention.out_proj(read.transpose(1, 2).flatten(2) + attention.v_proj.bias)
        return output

    def update(self, attention: Any, asked: Tensor, told: Tensor, takes_part: Tensor | None) -> Tensor:
        """See :class:`~embedcache.sam.decoding.plain.ImageTokens`."""
        heads = attention.num_heads
        k = attention.k_proj(asked).unflatten(-1, (heads, -1))
        k = k / math.sqrt(k.shape[-1])
        columns = _by_head(k, attention.q_proj.weight.unflatten(0, (heads, -1)))  # (Q, heads, T, 256)
        added = torch.einsum("qthd,hd->qht", k, attention.q_proj.bias.unflatten(0, (heads, -1)))
        if self._dense is not None:
            added = added + columns @ self._dense
        if takes_part is not None:
            added = added.masked_fill(~takes_part[:, None], -math.inf)
        written = written_values(attention, told, self._dense)
        updated: Tensor = _update(columns, added, written, self._tokens, self._position)
        return updated


def written_values(attention: Any, told: Tensor, dense: Tensor | None) -> Tensor:
    """Values already projected to the image's channels, ``(Q, heads · T, 256)``, head by head.

    In each head the shares of an image token sum to one, so that what all image tokens get alike (the bias, and
    what "no mask" adds) is spread over the heads.
    """
    heads = attention.num_heads
    v = attention.v_proj(told).unflatten(-1, (heads, -1))
    written = _by_head(v, attention.out_proj.weight.mT.unflatten(0, (heads, -1)))
    alike = attention.out_proj.bias if dense is None else attention.out_proj.bias + dense
    spread: Tensor = (written + alike / heads).flatten(1, 2)
    return spread


def _by_head(tokens: Tensor, weights: Tensor) -> Tensor:
    """``(Q, T, heads, c)`` times ``(heads, c, d)`` to ``(Q, heads, T, d)``."""
    queries, count = tokens.shape[:2]
    product = tokens.flatten(0, 1).transpose(0, 1) @ weights  # (heads, Q · T, d)
    return unflatten(product, 1, (queries, count)).transpose(0, 1)


class _Answer(torch.autograd.Function):
    """Softmax of ``columns · (tokens + position)`` over tokens, as shares of tokens."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
        shares = torch.softmax(columns @ (tokens + position).mT, dim=-1)
        ctx.save_for_backward(columns, tokens, position, shares)
        return shares @ tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns, tokens, position, shares = ctx.saved_tensors
        scores = _softmax_backward(gradient @ tokens.mT, shares, -1)
        of_tokens = None
        if ctx.needs_input_grad[1]:
            both = torch.cat([scores, shares], dim=1)
            of_tokens = both.mT @ torch.cat([columns, gradient], dim=1)
        return scores @ (tokens + position), of_tokens, None


class _Update(torch.autograd.Function):
    """Tokens plus shares of values: in each head softmax of ``columns · (tokens + position) + added``."""

    @staticmethod
    def forward(
        ctx: Any, columns: Tensor, added: Tensor, written: Tensor, tokens: Tensor, position: Tensor
    ) -> Tensor:
        flat = columns.flatten(1, 2)
        scores = torch.baddbmm(added.flatten(1)[..., None], flat, (tokens + position).mT)
        shares = torch.softmax(unflatten(scores, 1, added.shape[1:]), dim=2)
        ctx.save_for_backward(flat, written, tokens, position, shares)
        return torch.baddbmm(tokens, shares.flatten(1, 2).mT, written)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, written, tokens, position, shares = ctx.saved_tensors
        sizes = shares.shape[1:3]
        scores = _softmax_backward(unflatten(written @ gradient.mT, 1, sizes), shares, 2)
        of_written = shares.flatten(1, 2) @ gradient
        of_added, scores = scores.sum(dim=-1), scores.flatten(1, 2)
        of_columns = unflatten(scores @ (tokens + position), 1, sizes)
        of_tokens = torch.baddbmm(gradient, scores.mT, flat) if ctx.needs_input_grad[3] else None
        return of_columns, of_added, of_written, of_tokens, None


_answer: Any = _Answer.apply
_update: Any = _Update.apply


def _softmax_backward(gradient: Tensor, shares: Tensor, dim: int) -> Tensor:
    product = gradient * shares
    return torch.addcmul(product, shares, product.sum(dim=dim, keepdim=True), value=-1)
