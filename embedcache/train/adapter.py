"""Turns stored embeddings into such as suit the labels better: a small trained block between store and decoder.

The encoder is frozen, so what it does not show cannot be learnt from its embeddings. Part of that loss comes back
by letting a few convolutions see them before the decoder does. They start as the identity, so that a training with
an adapter begins where one without begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.utils import skip_init

from embedcache.errors import WeightsError
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.sam.decoder import Decoder, DecoderOutput, ImageSide, Prompts

PREFIX = "adapter."
"""Of its names in a state dict, beside SAM's ``prompt_encoder.*`` and ``mask_decoder.*``."""

WIDTH = 64
"""Channels that it works with."""


_unset: Any = skip_init  # without drawing values from the program's random numbers


class Adapter(nn.Module):
    """Adds to an embedding what 1 × 1, 3 × 3 per channel, GELU and 1 × 1 make of it, in 64 channels.

    They have 34 k parameters. The last weights are zero in the beginning: the identity, of which all parts learn
    from the second step on.

    Parameters
    ----------
    seed : int
        Of the other weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        channels = EMBEDDING_SHAPE[0]
        self.down: nn.Conv2d = _unset(nn.Conv2d, channels, WIDTH, 1)
        self.near: nn.Conv2d = _unset(nn.Conv2d, WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.up: nn.Conv2d = _unset(nn.Conv2d, WIDTH, channels, 1)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.down, self.near, self.up):
            reach = (3.0 / layer.weight[0].numel()) ** 0.5  # keeps the size of what comes in
            nn.init.uniform_(layer.weight, -reach, reach, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, image_embeddings: Tensor) -> Tensor:
        """Adapt embeddings ``(B, 256, 64, 64)`` of any float dtype; the answer has the adapter's."""
        given = image_embeddings.to(self.up.weight.dtype)
        added: Tensor = self.up(gelu(self.near(self.down(given))))
        return given + added


class AdaptedDecoder(Decoder):
    """SAM's decoder with an adapter before it, which sees each image once, however many prompts it has.

    Parameters
    ----------
    prompt_encoder, mask_decoder : nn.Module
        segment-anything's own.
    adapter : Adapter, optional
        Default: a new one.
    """

    def __init__(
        self, prompt_encoder: nn.Module, mask_decoder: nn.Module, adapter: Adapter | None = None
    ) -> None:
        super().__init__(prompt_encoder, mask_decoder)
        self.adapter = adapter if adapter is not None else Adapter()

    @classmethod
    def around(cls, decoder: Decoder, *, seed: int = 0) -> AdaptedDecoder:
        """The same decoder, whose modules are used and not copied, with a new adapter before it."""
        adapter = Adapter(seed).to(next(decoder.parameters()))
        return cls(decoder.prompt_encoder, decoder.mask_decoder, adapter)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Build from a state dict with ``adapter.*``; no tensor is shared.

        Raises
        ------
        WeightsError
            When tensors are missing, are not SAM's or the adapter's, or have other shapes.
        """
        own = {name for name in state if name.startswith(PREFIX)}
        decoder = Decoder.from_state({name: value for name, value in state.items() if name not in own})
        adapter = Adapter()
        try:
            adapter.load_state_dict({name.removeprefix(PREFIX): state[name] for name in own})
        except RuntimeError as error:
            raise WeightsError(f"These tensors are no adapter: {error}") from error
        return cls(decoder.prompt_encoder, decoder.mask_decoder, adapter)

    @property
    def decoder(self) -> Decoder:
        """What stands behind the adapter: the same modules, without it."""
        return Decoder(self.prompt_encoder, self.mask_decoder)

    def forward(
        self,
        image_embeddings: Tensor | ImageSide,
        prompts: Prompts,
        *,
        multimask_output: bool | None = False,
    ) -> DecoderOutput:
        """See :meth:`embedcache.sam.decoder.Decoder.forward`; prepared images are adapted already."""
        if isinstance(image_embeddings, Tensor):
            image_embeddings = self.adapter(image_embeddings)
        return super().forward(image_embeddings, prompts, multimask_output=multimask_output)

    def precompute(self, image_embeddings: Tensor) -> ImageSide:
        """See :meth:`embedcache.sam.decoder.Decoder.precompute`."""
        with torch.no_grad():
            return super().precompute(self.adapter(image_embeddings))


def build_model(state: Mapping[str, Tensor]) -> Decoder | AdaptedDecoder:
    """The model that a state dict is of: with an adapter where it has one.

    Raises
    ------
    WeightsError
        When tensors are missing, too many, or have other shapes.
    """
    adapted = any(name.startswith(PREFIX) for name in state)
    return AdaptedDecoder.from_state(state) if adapted else Decoder.from_state(state)
