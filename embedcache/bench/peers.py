"""Turns weights into the image encoders of other libraries that run SAM, where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE
from embedcache.sam.parts import PATCH_SIZE, WINDOW_SIZE, encoder_arguments, encoder_shape
from embedcache.sam.weights import Weights

_TRANSFORMERS_NAMES = (
    ("image_encoder.", ""),
    ("blocks.", "layers."),
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("patch_embed.proj.", "patch_embed.projection."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
)
"""What segment-anything calls a part of the image encoder, and what transformers calls it."""


class _LastHidden(nn.Module):
    """transformers' vision encoder, giving the plain embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, 3, 1024, 1024)`` to ``(B, 256, 64, 64)``."""
        embeddings: Tensor = self.model(inputs).last_hidden_state
        return embeddings


def build_transformers(weights: Weights) -> nn.Module:
    """The vision encoder of transformers' ``SamModel`` with its sdpa attention, under the same weights."""
    transformers = importlib.import_module("transformers")
    shape = encoder_shape(weights.model_type)
    config = transformers.SamVisionConfig(
        hidden_size=shape.width,
        output_channels=EMBEDDING_SHAPE[0],
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        window_size=WINDOW_SIZE,
        global_attn_indexes=list(shape.global_blocks),
        mlp_ratio=4.0,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    encoder = transformers.SamVisionModel(config).vision_encoder
    encoder.load_state_dict(
        {_transformers_name(name): value for name, value in weights.encoder_state().items()}, assign=True
    )
    return _LastHidden(encoder)


def _transformers_name(name: str) -> str:
    for ours, theirs in _TRANSFORMERS_NAMES:
        name = name.replace(ours, theirs)
    return name


def build_fast(weights: Weights) -> nn.Module:
    """segment-anything-fast's image encoder under the same weights."""
    modeling = importlib.import_module("segment_anything_fast.modeling")
    encoder: nn.Module = modeling.ImageEncoderViT(**encoder_arguments(weights.model_type))
    state = {name.removeprefix("image_encoder."): value for name, value in weights.encoder_state().items()}
    encoder.load_state_dict(state, assign=True)
    return encoder
