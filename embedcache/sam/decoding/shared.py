"""Turns tokens of all prompts of an image into what they and it learn of each other in the first layer.

Until prompts have written to it, an image is the same for all of its prompts. So its keys, values and queries are
projected once, and the tokens of all prompts ask them together; the first copy for each prompt is what is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, unflatten
from torch.nn.functional import linear

from embedcache.errors import InputError
from embedcache.sam.decoding.absorbed import written_values
from embedcache.sam.decoding.plain import join_heads, split_heads


@dataclass(frozen=True, eq=False)
class ImageSide:
    """What the first layer needs of B images, whatever is asked of them.

    Parameters
    ----------
    tokens : Tensor
        ``(B, 4096, 256)``, of the decoder's dtype.
    keys, values : Tensor
        ``(B, 8, 4096, 16)``: what prompt tokens read.
    queries : Tensor
        ``(B, 8, 4096, 16)``: what the image asks prompt tokens.
    stamp : tuple
        Of the weights that made it, where it is kept; see :func:`stamp_of`.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    stamp: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def project(cls, layer: Any, tokens: Tensor, position: Tensor, dense: Tensor) -> ImageSide:
        """Project images with the first layer's weights; ``dense`` ``(256,)`` is what "no mask" adds to them.

        Images from a store need no gradient and get none, as ``dense`` is not added to them: to the keys it adds
        the same score for all, which the softmax drops; of values and queries it is part of the bias.
        """
        reading, writing = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        placed = tokens + position
        v, q = reading.v_proj, writing.q_proj
        return cls(
            tokens,
            split_heads(reading.k_proj(placed), reading.num_heads),
            split_heads(linear(tokens, v.weight, linear(dense, v.weight, v.bias)), reading.num_heads),
            split_heads(linear(placed, q.weight, linear(dense, q.weight, q.bias)), writing.num_heads),
        )

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tokens.device

    def __getitem__(self, images: slice) -> ImageSide:
        """Of some of the images."""
        parts = (self.tokens[images], self.keys[images], self.values[images], self.queries[images])
        return ImageSide(*parts, self.stamp)

    def check(self, module: nn.Module) -> None:
        """Refuse weights that were changed since.

        Raises
        ------
        InputError
        """
        if self.stamp != stamp_of(module):
            raise InputError(
                "The decoder's weights were changed since it prepared these images.",
                hint="Call precompute again.",
            )


def stamp_of(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where a module's weights lie and how often they were written; inference tensors do not count."""
    return tuple(
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in module.parameters()
    )


class SharedImages:
    """Images with several prompts each.

    Parameters
    ----------
    side : ImageSide
        Of B images.
    counts : tuple of int
        Prompts of each.
    dense : Tensor
        ``(256,)``: what "no mask" adds to an image.
    absorbed : bool
        Whether the last projection is folded into the prompt tokens.
    """

    def __init__(self, side: ImageSide, counts: tuple[int, ...], dense: Tensor, *, absorbed: bool) -> None:
        self._side = side
        self._counts = counts
        self._rows = Rows(counts, side.device)
        self._dense = dense
        self._absorbed = absorbed

    def answer(self, attention: Any, queries: Tensor) -> Tensor:
        """See :class:`~embedcache.sam.decoding.plain.ImageTokens`."""
        q = self._rows.together(attention.q_proj(queries))  # (B, P, T, 128)
        asked = split_heads(q.flatten(1, 2), attention.num_heads)
        shares = torch.softmax(asked / math.sqrt(asked.shape[-1]) @ self._side.keys.mT, dim=-1)
        read = unflatten(join_heads(shares @ self._side.values), 1, q.shape[1:3])
        output: Tensor = attention.out_proj(self._rows.apart(read))
        return output

    def update(self, attention: Any, asked: Tensor, told: Tensor, takes_part: Tensor | None) -> Tensor:
        """See :class:`~embedcache.sam.decoding.plain.ImageTokens`."""
        k = self._rows.together(attention.k_proj(asked))
        keys = split_heads(k.flatten(1, 2), attention.num_heads)
        scores = keys / math.sqrt(keys.shape[-1]) @ self._side.queries.mT  # (B, 8, P · T, 4096)
        scores = self._rows.apart(unflatten(scores, 2, k.shape[1:3]).transpose(1, 2))  # (Q, 8, T, 4096)
        if takes_part is not None:
            scores = scores.masked_fill(~takes_part[:, None, :, None], -math.inf)
        shares = torch.softmax(scores, dim=2)
        tokens = spread(self._side.tokens, self._counts)
        if self._absorbed:
            written = written_values(attention, told, self._dense)
            return torch.baddbmm(tokens, shares.flatten(1, 2).mT, written)
        values = split_heads(attention.v_proj(told), attention.num_heads)
        bias = attention.out_proj.bias + self._dense
        return tokens + linear(join_heads(shares.mT @ values), attention.out_proj.weight, bias)


class Rows:
    """Which of Q prompts are of which of B images, with P at most; nothing that a GPU adds up in any order.

    Parameters
    ----------
    counts : tuple of int
        Prompts of each image.
    device : torch.device
        Where the prompts are.
    """

    def __init__(self, counts: tuple[int, ...], device: torch.device) -> None:
        self._counts = counts
        self._most = max(counts)
        self._even = min(counts) == self._most
        if not self._even:
            firsts = [sum(counts[:image]) for image in range(len(counts))]
            # Places beyond an image's prompts repeat its last; they are never taken out again
            padded = [
                first + min(k, count - 1)
                for first, count in zip(firsts, counts, strict=True)
                for k in range(self._most)
            ]
            placed = [image * self._most + k for image, count in enumerate(counts) for k in range(count)]
            self._padded, self._placed = (_on_device(numbers, device) for numbers in (padded, placed))

    def together(self, values: Tensor) -> Tensor:
        """``(Q, …)`` to ``(B, P, …)``."""
        if not self._even:
            values = values.index_select(0, self._padded)
        return unflatten(values, 0, (len(self._counts), self._most))

    def apart(self, values: Tensor) -> Tensor:
        """``(B, P, …)`` to ``(Q, …)``."""
        flat = values.flatten(0, 1)
        return flat if self._even else flat.index_select(0, self._placed)


def spread(images: Tensor, counts: tuple[int, ...]) -> Tensor:
    """``(B, …)`` to ``(Q, …)``: each image for each of its prompts; no copy where there is one image."""
    if max(counts) == 1:
        return images
    sizes = [-1] * (images.ndim - 1)
    pairs = zip(images.chunk(len(images)), counts, strict=True)
    copies = [image.expand(count, *sizes) for image, count in pairs]
    return copies[0] if len(copies) == 1 else torch.cat(copies)


def _on_device(numbers: list[int], device: torch.device) -> Tensor:
    """Numbers as a tensor; to a GPU from pinned memory, as any other copy waits for all that was asked before."""
    found = torch.tensor(numbers)
    return found if device.type != "cuda" else found.pin_memory().to(device, non_blocking=True)
