"""Turns image embeddings and prompts into mask logits: SAM's own decoder, for many images in one call.

segment-anything's ``MaskDecoder`` takes one image with several prompts; for more images its loop is outside. Here
prompts of all images form one batch of Q queries, each of which looks at the embedding of its image. Modules,
parameters and names are segment-anything's own; so are the results. How they are computed is chosen for each call
and changes nothing but the order of sums: see :mod:`embedcache.sam.decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from embedcache.errors import InputError, WeightsError
from embedcache.geometry import EMBEDDING_SHAPE
from embedcache.sam.decoding.absorbed import AbsorbedImages
from embedcache.sam.decoding.plain import ImageTokens, PlainImages
from embedcache.sam.decoding.shared import ImageSide, SharedImages, spread, stamp_of
from embedcache.sam.decoding.tokens import prompt_tokens, token_count
from embedcache.sam.decoding.transformer import transform
from embedcache.sam.decoding.upscaling import upscale, upscale_logits
from embedcache.sam.decoding.way import Way, choose_way
from embedcache.sam.parts import build_decoder_parts
from embedcache.sam.prompts import PAD_LABEL, Prompts
from embedcache.sam.random_state import random_decoder_state

__all__ = ["PAD_LABEL", "Decoder", "DecoderOutput", "ImageSide", "Prompts", "Way", "upscale_logits"]


class DecoderOutput(NamedTuple):
    """What the decoder says about Q prompts.

    Attributes
    ----------
    low_res_logits : Tensor
        ``(Q, M, 256, 256)``; above zero is inside. M is 3 with ``multimask_output``, 4 with None, else 1.
    iou_predictions : Tensor
        ``(Q, M)``: the decoder's own guess of each mask's IoU.
    """

    low_res_logits: Tensor
    iou_predictions: Tensor


class Decoder(nn.Module):
    """SAM's prompt encoder and mask decoder for B images with any number of prompts each.

    Parameters
    ----------
    prompt_encoder, mask_decoder : nn.Module
        segment-anything's own; the state dict's keys are SAM's ``prompt_encoder.*`` and ``mask_decoder.*``.

    Attributes
    ----------
    way : Way or None
        How to compute, for tests and benches; None: chosen for each call.
    """

    way: Way | None = None

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.prompt_encoder: Any = prompt_encoder
        self.mask_decoder: Any = mask_decoder
        self._dense_pe: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Build from a state dict, of which ``image_encoder.*`` is left alone; no tensor is shared.

        Raises
        ------
        WeightsError
            When tensors are missing, are not SAM's, or have other shapes.
        """
        own = {
            name: value.detach().to(torch.float32, copy=True)
            for name, value in state.items()
            if not name.startswith("image_encoder.")
        }
        decoder = cls(*build_decoder_parts())
        try:
            decoder.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise WeightsError(f"These tensors are no SAM decoder: {error}") from error
        return decoder.requires_grad_(True)

    @classmethod
    def random(cls, seed: int) -> Self:
        """Untrained: the decoder of ``random:SEED``, whatever the model type."""
        return cls.from_state(random_decoder_state(seed))

    def forward(
        self,
        image_embeddings: Tensor | ImageSide,
        prompts: Prompts,
        *,
        multimask_output: bool | None = False,
    ) -> DecoderOutput:
        """Decode the masks of Q prompts on B images.

        Parameters
        ----------
        image_embeddings : Tensor or ImageSide
            ``(B, 256, 64, 64)`` of any float dtype, on the decoder's device; or what
            :meth:`precompute` made of it.
        prompts : Prompts
            Of the same B images. Rows may have unequal points (``point_counts``) and no box (``has_box``).
        multimask_output : bool or None
            Three masks a prompt (whole, part, subpart) instead of one; None: all four, the single one first.

        Raises
        ------
        InputError
            When the embeddings' shape or dtype does not hold, they are of another number of images than the
            prompts, or gradients are wanted through images prepared without them.
        """
        images = _checked(image_embeddings, prompts)
        step = self._way(images.device, prompts).images_per_call or len(images)
        found: list[DecoderOutput] = []
        for first in range(0, len(images), step):
            call = slice(first, first + step)
            found += self._decode(image_embeddings[call], prompts.of_images(call), multimask_output)
        together = (torch.cat(values) for values in zip(*found, strict=True))
        return found[0] if len(found) == 1 else DecoderOutput(*together)

    @torch.no_grad()
    def precompute(self, image_embeddings: Tensor) -> ImageSide:
        """What many calls on the same images can share, without gradients; refused once the weights changed."""
        tokens = self._tokens_of(_checked(image_embeddings, None))
        return replace(self._projected(tokens), stamp=stamp_of(self))

    def _decode(
        self, given: Tensor | ImageSide, prompts: Prompts, multimask_output: bool | None
    ) -> Iterator[DecoderOutput]:
        """Decode some of the images, as many prompts together as the way says."""
        way = self._way(given.device, prompts)
        images = self._prepared(given, prompts, way)
        step = (len(prompts.counts) == 1 and way.prompts_per_call) or prompts.queries
        for first in range(0, prompts.queries, step):
            part = prompts.of_rows(slice(first, first + step)) if step < prompts.queries else prompts
            yield self._decode_together(images, part, way, multimask_output)

    def _decode_together(
        self, images: Tensor | ImageSide, prompts: Prompts, way: Way, multimask_output: bool | None
    ) -> DecoderOutput:
        """Do what ``MaskDecoder.forward`` does."""
        decoder = self.mask_decoder
        sparse, takes_part = prompt_tokens(self.prompt_encoder, prompts)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse.to(own.dtype)], dim=1)
        if takes_part is not None:
            takes_part = pad(takes_part, (len(own), 0), value=True)
        first, later = self._images(images, prompts, way)
        hidden, keys = transform(decoder.transformer, tokens, takes_part, first, later, wanted=len(own))
        chosen = {None: slice(None), True: slice(1, None), False: slice(0, 1)}[multimask_output]
        # Masks that nobody asked for have vectors all the same: their gradient is zero, as in stock, not absent
        vectors = torch.stack(
            [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        masks = upscale(decoder, keys, vectors[:, chosen], way.upscaling)
        return DecoderOutput(masks, decoder.iou_prediction_head(hidden[:, 0])[:, chosen])

    def _way(self, device: torch.device, prompts: Prompts) -> Way:
        return self.way or choose_way(
            device,
            prompts.queries,
            len(prompts.counts),
            1 + self.mask_decoder.num_mask_tokens + token_count(prompts),
            mask_prompts=prompts.mask_input is not None,
            autocast=torch.is_autocast_enabled(device.type),
        )

    def _prepared(self, images: Tensor | ImageSide, prompts: Prompts, way: Way) -> Tensor | ImageSide:
        """Images as tokens ``(B, 4096, 256)``, already projected where all prompts can share that."""
        if isinstance(images, ImageSide):
            images.check(self)
            return images if prompts.mask_input is None else images.tokens
        tokens = self._tokens_of(images)
        return tokens if prompts.mask_input is not None or not way.shared else self._projected(tokens)

    def _projected(self, tokens: Tensor) -> ImageSide:
        layer = self.mask_decoder.transformer.layers[0]
        return ImageSide.project(layer, tokens, self._position(), self._no_mask())

    def _images(
        self, images: Tensor | ImageSide, prompts: Prompts, way: Way
    ) -> tuple[ImageTokens, Callable[[Tensor], ImageTokens]]:
        """What the first layer sees of the images, and how the later ones see what the prompts made of them."""
        position, dense = self._position(), self._no_mask()
        later = partial(AbsorbedImages if way.absorbed else PlainImages, position=position)
        if isinstance(images, ImageSide):
            return SharedImages(images, prompts.counts, dense, absorbed=way.absorbed), later
        tokens = spread(images, prompts.counts)
        masks = prompts.mask_input
        if masks is not None:
            added = self.prompt_encoder.mask_downscaling(masks.to(dense.dtype)).flatten(2).mT
            return later(tokens + added), later
        if way.absorbed:
            return AbsorbedImages(tokens, position, dense), later
        return PlainImages(tokens + dense, position), later

    def _tokens_of(self, images: Tensor) -> Tensor:
        """``(B, 256, 64, 64)`` to ``(B, 4096, 256)`` of the decoder's dtype."""
        return images.to(self._no_mask().dtype).flatten(2).mT.contiguous()

    def _no_mask(self) -> Tensor:
        weight: Tensor = self.prompt_encoder.no_mask_embed.weight
        return weight[0]

    def _position(self) -> Tensor:
        """Where image tokens lie, ``(4096, 256)``."""
        return self.dense_pe().to(self._no_mask().dtype)[0].flatten(1).mT

    def dense_pe(self) -> Tensor:
        """Position embedding of the 64 × 64 grid, ``(1, 256, 64, 64)``: a constant, computed once per device."""
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        if matrix.is_inference():  # has no version to tell whether it changed
            return self.prompt_encoder.get_dense_pe()  # type: ignore[no-any-return]
        kept = self._dense_pe
        if kept is None or kept[0] is not matrix or kept[1] != matrix._version:
            off = torch.autocast(matrix.device.type, enabled=False)
            with torch.inference_mode(False), torch.no_grad(), off:
                kept = (matrix, matrix._version, self.prompt_encoder.get_dense_pe())
            self._dense_pe = kept
        return kept[2]


def _checked(image_embeddings: Tensor | ImageSide, prompts: Prompts | None) -> Tensor:
    """The embeddings, or tokens for which they stand, once their shape and number are known to hold."""
    if isinstance(image_embeddings, ImageSide):
        if torch.is_grad_enabled():
            raise InputError("Images prepared by precompute bring no gradients: use torch.no_grad().")
        images = image_embeddings.tokens
    else:
        images = image_embeddings
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1:] != EMBEDDING_SHAPE:
            raise InputError(f"image_embeddings has shape {shape}; (B, 256, 64, 64) is expected.")
        if not images.is_floating_point():
            raise InputError(f"image_embeddings is {images.dtype}; a float dtype is expected.")
    if prompts is not None and len(prompts.counts) != len(images):
        raise InputError(f"Prompts are of {len(prompts.counts)} images, embeddings of {len(images)}.")
    return images
