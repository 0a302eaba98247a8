"""Turns SAM's modules into a model as fine-tuning scripts call it: image by image, by stock code alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embedcache.errors import ConfigError
from embedcache.sam.decoder import Decoder, DecoderOutput, ImageSide, Prompts


class StockDecoder(Decoder):
    """segment-anything's prompt encoder and mask decoder, called once for each image, nothing kept between calls.

    It learns where :class:`~embedcache.sam.decoder.Decoder` learns, so that both can take the same steps; it takes
    prompts as stock does, which all have as many points, and a box or none.
    """

    def forward(
        self,
        image_embeddings: Tensor | ImageSide,
        prompts: Prompts,
        *,
        multimask_output: bool | None = False,
    ) -> DecoderOutput:
        """See :meth:`embedcache.sam.decoder.Decoder.forward`.

        Raises
        ------
        ConfigError
            For what stock code cannot do: images prepared before, ragged rows, all four masks.
        """
        ragged = prompts.point_counts is not None or prompts.has_box is not None
        if not isinstance(image_embeddings, Tensor) or ragged or multimask_output is None:
            raise ConfigError("Stock code takes embeddings, even prompts, and gives one mask or three.")
        found = [
            self._image(image_embeddings[image : image + 1], prompts.of_images(part), multimask_output)
            for image in range(len(image_embeddings))
            for part in [slice(image, image + 1)]
        ]
        return DecoderOutput(*(torch.cat(values) for values in zip(*found, strict=True)))

    def _image(self, embedding: Tensor, prompts: Prompts, multimask_output: bool) -> Any:
        points = None if prompts.point_coords is None else (prompts.point_coords, prompts.point_labels)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.mask_input)
        return self.mask_decoder(
            image_embeddings=embedding.float(),
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
