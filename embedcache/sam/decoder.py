"""Turns image embeddings and prompts into mask logits: SAM's own decoder, for many images in one call.

segment-anything's ``MaskDecoder`` takes one image with several prompts; for more images its loop is outside. Here
prompts of all images form one batch of Q queries, each of which looks at the embedding of its image. Modules,
parameters and names are segment-anything's own; so are the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from embedcache.errors import InputError, WeightsError
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE, LOW_RES_SIZE, Tile
from embedcache.sam.parts import build_decoder_parts
from embedcache.sam.prompts import PAD_LABEL, Prompts
from embedcache.sam.random_state import random_decoder_state

__all__ = ["PAD_LABEL", "Decoder", "DecoderOutput", "Prompts", "upscale_logits"]


class DecoderOutput(NamedTuple):
    """What the decoder says about Q prompts.

    Attributes
    ----------
    low_res_logits : Tensor
        ``(Q, M, 256, 256)``; above zero is inside. M is 3 with ``multimask_output``, else 1.
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
    """

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
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool = False
    ) -> DecoderOutput:
        """Decode the masks of Q prompts on B images.

        Parameters
        ----------
        image_embeddings : Tensor
            ``(B, 256, 64, 64)``, of the decoder's dtype and on its device.
        prompts : Prompts
            Of the same B images.
        multimask_output : bool
            Three masks a prompt (whole, part, subpart) instead of one.

        Raises
        ------
        InputError
            When the embeddings' shape does not hold, they are of another number of images than the prompts, or
            the prompts are mixed (``point_counts``, ``has_box``), which is not decoded yet.
        """
        if prompts.point_counts is not None or prompts.has_box is not None:
            raise InputError("Prompts with point_counts or has_box are not decoded yet.")
        if image_embeddings.ndim != 4 or image_embeddings.shape[1:] != EMBEDDING_SHAPE:
            raise InputError(
                f"image_embeddings has shape {tuple(image_embeddings.shape)}; (B, 256, 64, 64) is expected."
            )
        if len(prompts.counts) != len(image_embeddings):
            raise InputError(
                f"Prompts are of {len(prompts.counts)} images, embeddings of {len(image_embeddings)}."
            )
        sparse, dense = self._embed(prompts)
        keys = _one_per_prompt(image_embeddings, prompts.counts)
        masks, iou = self._decode(keys, sparse.to(keys.dtype), dense.to(keys.dtype))
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return DecoderOutput(masks[:, chosen], iou[:, chosen])

    def _embed(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Sparse ``(Q, N, 256)`` and dense ``(Q, 256, 64, 64)`` embeddings of all prompts."""
        points = None if prompts.point_coords is None else (prompts.point_coords, prompts.point_labels)
        masks = prompts.mask_input
        if masks is not None:
            masks = masks.to(self.prompt_encoder.no_mask_embed.weight.dtype)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes, masks=masks)
        # Without any prompt segment-anything answers for one query
        return sparse.expand(prompts.queries, -1, -1), dense.expand(prompts.queries, -1, -1, -1)

    def _decode(self, image_embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Do what ``MaskDecoder.predict_masks`` does, with one image embedding for each of the Q prompts."""
        decoder = self.mask_decoder
        queries = len(sparse)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
        tokens = torch.cat((output_tokens.expand(queries, -1, -1), sparse), dim=1)
        keys = image_embeddings + dense
        _, channels, height, width = keys.shape
        position = self.dense_pe().to(keys.dtype).expand(queries, -1, -1, -1)

        hidden, keys = decoder.transformer(keys, position, tokens)
        iou_hidden, mask_hidden = hidden[:, 0], hidden[:, 1 : 1 + decoder.num_mask_tokens]

        upscaled = decoder.output_upscaling(keys.transpose(1, 2).view(queries, channels, height, width))
        hyper = torch.stack(
            [mlp(mask_hidden[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        masks = (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return masks, decoder.iou_prediction_head(iou_hidden)

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


def _one_per_prompt(image_embeddings: Tensor, counts: tuple[int, ...]) -> Tensor:
    if all(count == 1 for count in counts):
        return image_embeddings
    repeats = torch.tensor(counts, device=image_embeddings.device)
    return image_embeddings.repeat_interleave(repeats, dim=0, output_size=sum(counts))


def upscale_logits(low_res_logits: Tensor, tile: Tile) -> Tensor:
    """Scale mask logits up to a tile's own pixels: SAM's ``postprocess_masks``.

    Parameters
    ----------
    low_res_logits : Tensor
        ``(..., 256, 256)``, as the decoder returns them.
    tile : Tile
        Whose pixels are wanted.

    Returns
    -------
    Tensor
        ``(..., tile.height, tile.width)``.
    """
    leading = low_res_logits.shape[:-2]
    masks = (
        leading[-1] if leading else 1
    )  # channels, as SAM has them: torch rounds alike only in the same layout
    height, width = tile.input_size
    frame = interpolate(
        low_res_logits.reshape(-1, masks, LOW_RES_SIZE, LOW_RES_SIZE),
        (IMAGE_SIZE, IMAGE_SIZE),
        mode="bilinear",
        align_corners=False,
    )
    scaled = interpolate(
        frame[..., :height, :width], (tile.height, tile.width), mode="bilinear", align_corners=False
    )
    return scaled.reshape(*leading, tile.height, tile.width)
