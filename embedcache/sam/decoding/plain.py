"""Turns tokens and one image for each of their rows into what they learn of each other, as stock does."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, unflatten


class ImageTokens(Protocol):
    """The 4096 tokens of the images of Q prompts, from which prompt tokens read and to which they write."""

    def answer(self, attention: Any, queries: Tensor) -> Tensor:
        """What prompt tokens ``(Q, T, 256)`` read from their images, of the same shape."""

    def update(self, attention: Any, asked: Tensor, told: Tensor, takes_part: Tensor | None) -> Tensor:
        """The images ``(Q, 4096, 256)`` after tokens, keys ``asked`` with values ``told``, wrote to them."""


class PlainImages:
    """An image for each prompt, all of whose tokens are projected.

    Parameters
    ----------
    tokens : Tensor
        ``(Q, 4096, 256)``.
    position : Tensor
        ``(4096, 256)``: where they lie.
    """

    def __init__(self, tokens: Tensor, position: Tensor) -> None:
        self._tokens = tokens
        self._placed = tokens + position

    def answer(self, attention: Any, queries: Tensor) -> Tensor:
        """See :class:`ImageTokens`."""
        return attend(attention, queries, self._placed, self._tokens)

    def update(self, attention: Any, asked: Tensor, told: Tensor, takes_part: Tensor | None) -> Tensor:
        """See :class:`ImageTokens`."""
        return self._tokens + attend(attention, self._placed, asked, told, takes_part)


def attend(
    attention: Any, queries: Tensor, keys: Tensor, values: Tensor, takes_part: Tensor | None = None
) -> Tensor:
    """segment-anything's ``Attention``, of whose keys some may take no part.

    Parameters
    ----------
    attention : Attention
        Whose projections are used.
    queries, keys, values : Tensor
        ``(Q, n, 256)`` and ``(Q, m, 256)``.
    takes_part : Tensor of bool, optional
        ``(Q, m)``: which keys do; in each row at least one.
    """
    heads = attention.num_heads
    q = split_heads(attention.q_proj(queries), heads)
    k = split_heads(attention.k_proj(keys), heads)
    v = split_heads(attention.v_proj(values), heads)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if takes_part is not None:
        scores = scores.masked_fill(~takes_part[:, None, None], -math.inf)
    output: Tensor = attention.out_proj(join_heads(torch.softmax(scores, dim=-1) @ v))
    return output


def split_heads(values: Tensor, heads: int) -> Tensor:
    """``(Q, n, c)`` to ``(Q, heads, n, c / heads)``."""
    return unflatten(values, -1, (heads, -1)).transpose(1, 2)


def join_heads(values: Tensor) -> Tensor:
    """``(Q, heads, n, d)`` to ``(Q, n, heads · d)``."""
    return values.transpose(1, 2).flatten(2)
