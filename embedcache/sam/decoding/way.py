"""Turns a device and the size of a call into the way that it is computed: the same results at another cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Way:
    """How a call is computed. Every way gives stock's outputs and gradients, but for the order of sums.

    Parameters
    ----------
    images_per_call : int or None
        Images that are computed together; None: all. On a CPU the activations of one image stay in its caches.
    shared : bool
        The first layer's projections of the 4096 image tokens once per image, not once per prompt. Without effect
        on mask prompts, which make every prompt's image another.
    absorbed : bool
        Projections of the image's tokens folded into those of the few prompt tokens.
    upscaling : {"stock", "tokens"}
        segment-anything's transposed convolutions, or the same as linear layers over tokens.
    prompts_per_call : int or None
        Prompts of an image that are computed together, where images are computed one by one; None: all.
    """

    images_per_call: int | None
    shared: bool
    absorbed: bool
    upscaling: Literal["stock", "tokens"]
    prompts_per_call: int | None = None


STOCK = Way(None, False, False, "stock")
"""As segment-anything computes: each prompt with an image of its own, all projections, convolutions."""

MOST_ABSORBED_TOKENS = 16
"""A prompt token has a column in each of 8 heads; beyond 128 columns the projections to 128 channels cost less."""

LEAST_SHARED_PROMPTS = 3
"""Prompts of an image from which its three projections cost less than folding them into every prompt's tokens."""


CPU_PROMPTS_PER_CALL = 4
"""A prompt's largest tensor has 8 MiB: beyond this, they leave the caches and are new pages for each call."""


def choose_way(
    device: torch.device, queries: int, images: int, tokens: int, *, mask_prompts: bool, autocast: bool
) -> Way:
    """The cheapest way for a call.

    Parameters
    ----------
    device : torch.device
        Where it runs.
    queries, images : int
        Q prompts on B images.
    tokens : int
        T of a query: five of the decoder's own and those of points and boxes.
    mask_prompts : bool
        Whether prompts bring masks, which make every prompt's image its own.
    autocast : bool
        Whether torch rounds matrix products to bf16. Folded projections round elsewhere than stock, so that they
        are not used then.
    """
    return Way(
        images_per_call=1 if device.type == "cpu" else None,
        shared=not mask_prompts and queries >= LEAST_SHARED_PROMPTS * images,
        absorbed=tokens <= MOST_ABSORBED_TOKENS and not autocast,
        upscaling="tokens",
        prompts_per_call=CPU_PROMPTS_PER_CALL if device.type == "cpu" else None,
    )
