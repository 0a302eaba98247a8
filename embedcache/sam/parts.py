"""Turns a model type's name into segment-anything's own modules, without needing torchvision.

``segment_anything/__init__.py`` imports its predictor, which imports torchvision, which this package does not
need and which does not exist for every build of torch. So the model code is imported under a stand-in for the
package that has its path but has not run its ``__init__``. Afterwards the stand-in is taken away, and a later
``import segment_anything`` runs as if nothing had happened. The submodules stay in ``sys.modules``: their
classes are then the same ones for everybody, and what looks classes up by module name (pickle, ``torch.compile``)
finds them. Where torchvision works, the normal import is used.

Encoders of other kinds can be added: see :func:`register_encoder`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from embedcache.errors import WeightsError
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE

PATCH_SIZE = 16
WINDOW_SIZE = 14

_PACKAGE = "segment_anything"
_MODELING = "segment_anything.modeling"


def import_modeling() -> ModuleType:
    """Import ``segment_anything.modeling``, with or without torchvision.

    Returns
    -------
    module
        With ``ImageEncoderViT``, ``PromptEncoder``, ``MaskDecoder``, ``TwoWayTransformer``.
    """
    if _PACKAGE not in sys.modules and importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module(_PACKAGE)
        except (ImportError, RuntimeError, OSError):
            # torchvision of another torch build: its operators or libraries are missing
            return _import_without_init()
    if _PACKAGE in sys.modules:
        return importlib.import_module(_MODELING)
    return _import_without_init()


def _import_without_init() -> ModuleType:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise WeightsError("segment-anything is not installed.", hint="pip install segment-anything==1.0")
    stand_in = ModuleType(_PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations)
    stand_in.__spec__ = spec
    sys.modules[_PACKAGE] = stand_in
    try:
        return importlib.import_module(_MODELING)
    finally:
        del sys.modules[_PACKAGE]


modeling: Any = import_modeling()


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What tells SAM's image encoders apart.

    Parameters
    ----------
    width : int
        Channels of a token.
    depth, heads : int
        Number of blocks, and of attention heads in each.
    global_blocks : tuple of int
        Blocks whose attention spans the whole image; the others attend in windows of 14 × 14 tokens.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


TINY = EncoderShape(width=192, depth=2, heads=3, global_blocks=(1,))
"""``vit_tiny``: the same code path and output shape as vit_b at about 1/25 of the cost; never trained."""

SHAPES: dict[str, EncoderShape] = {
    "vit_b": EncoderShape(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": EncoderShape(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": EncoderShape(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "vit_tiny": TINY,
}
"""The encoders that can be built, by model type."""


BuildEncoder = Callable[[], nn.Module]
"""Makes an image encoder, without arguments; what its parameters hold afterwards plays no part."""

_REGISTERED: dict[str, BuildEncoder] = {}


def register_encoder(model_type: str, build_module: BuildEncoder) -> None:
    """Add an image encoder of another kind under a model type of its own, for this process.

    From then on ``model_type`` is a value of ``--model`` and ``encode(model=…)``. Its weights are ``random:SEED``,
    or a checkpoint whose ``image_encoder.*`` are exactly the state dict of the module, beside SAM's own decoder.

    Parameters
    ----------
    model_type : str
        Part of the identity of every store that it encodes: another architecture needs another name.
    build_module : callable
        Returns a module that turns SAM's input (B, 3, 1024, 1024) into embeddings (B, 256, 64, 64), no image
        depending on its neighbours. It is called under ``torch.device("meta")``, so everything the module needs
        must be a parameter or a persistent buffer.

    Raises
    ------
    WeightsError
        When the name is that of another encoder, or none.
    """
    if not model_type.isidentifier():
        raise WeightsError(f"{model_type!r} is no name for a model type.", hint="Letters, digits and _ only.")
    if model_type in SHAPES or _REGISTERED.get(model_type, build_module) is not build_module:
        raise WeightsError(f"There is an encoder {model_type!r} already.", hint="Choose another name.")
    _REGISTERED[model_type] = build_module


def is_registered(model_type: str) -> bool:
    """Whether a model type was added by :func:`register_encoder`."""
    return model_type in _REGISTERED


def model_types() -> tuple[str, ...]:
    """All model types that can be built: SAM's, ``vit_tiny``, and those that were registered."""
    return (*SHAPES, *_REGISTERED)


def build_encoder(model_type: str) -> nn.Module:
    """The image encoder of a model type, its parameters without values (on the meta device).

    Returns
    -------
    nn.Module
        SAM's ``ImageEncoderViT``, or what was registered under the name.

    Raises
    ------
    WeightsError
        When there is no such model type.
    """
    if is_registered(model_type):
        with torch.device("meta"):
            return _REGISTERED[model_type]().eval()
    with torch.device("meta"):
        encoder: nn.Module = modeling.ImageEncoderViT(**encoder_arguments(model_type))
    return encoder.eval()


def encoder_arguments(model_type: str) -> dict[str, Any]:
    """What segment-anything's ``ImageEncoderViT``, and copies of it, are made with for a model type.

    Raises
    ------
    WeightsError
        When there is no such model type.
    """
    shape = encoder_shape(model_type)
    return {
        "img_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": 4,
        "out_chans": EMBEDDING_SHAPE[0],
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "use_rel_pos": True,
        "window_size": WINDOW_SIZE,
        "global_attn_indexes": shape.global_blocks,
    }


def build_decoder_parts() -> tuple[nn.Module, nn.Module]:
    """SAM's ``PromptEncoder`` and ``MaskDecoder``, their parameters without values (on the meta device)."""
    channels, height, width = EMBEDDING_SHAPE
    with torch.device("meta"):
        prompt_encoder: nn.Module = modeling.PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(height, width),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        )
        mask_decoder: nn.Module = modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8
            ),
            transformer_dim=channels,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
    return prompt_encoder, mask_decoder


def build(model_type: str) -> nn.ModuleDict:
    """The three parts of a whole SAM, their parameters without values.

    The names in the state dict are SAM's own: ``image_encoder.*``, ``prompt_encoder.*``, ``mask_decoder.*``.
    """
    prompt_encoder, mask_decoder = build_decoder_parts()
    return nn.ModuleDict(
        {
            "image_encoder": build_encoder(model_type),
            "prompt_encoder": prompt_encoder,
            "mask_decoder": mask_decoder,
        }
    )


def encoder_shape(model_type: str) -> EncoderShape:
    """The shape of a model type's ViT.

    Raises
    ------
    WeightsError
        When there is no such model type.
    """
    if model_type not in SHAPES:
        raise WeightsError(
            f"There is no model type {model_type!r}.", hint=f"Known: {', '.join(model_types())}."
        )
    return SHAPES[model_type]
