"""Turns a file of SAM's, or of whoever tuned it, into a decoder and the digest of the encoder it came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from embedcache.errors import WeightsError
from embedcache.sam.checkpoint_file import detect_model_type, read_tensors
from embedcache.sam.decoder import Decoder
from embedcache.sam.weights import tensors_digest

_ENCODER = "image_encoder."
_SMALLER = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class DecoderFile:
    """What a file holds for decoding.

    Parameters
    ----------
    state : dict of str to Tensor
        ``prompt_encoder.*`` and ``mask_decoder.*``, float32.
    encoder_digest : str or None
        Of the image encoder in the same file, as :attr:`embedcache.sam.weights.Weights.encoder_digest`; None
        when it holds no encoder.
    model_type : str or None
        Of that encoder, by its shapes; None when it is of no known shape.
    also : tuple of str
        Digests that the encoder has when it is kept in fewer bits, where that loses nothing: it may have been
        so in the file that a store was made from.
    """

    state: dict[str, Tensor] = field(repr=False)
    encoder_digest: str | None
    model_type: str | None
    also: tuple[str, ...] = ()

    def is_of(self, encoder_digest: str) -> bool:
        """Whether the file's encoder is the one with this digest."""
        return encoder_digest == self.encoder_digest or encoder_digest in self.also


def read_decoder_file(path: Path) -> DecoderFile:
    """Read a ``.pth``, ``.pt`` or ``.safetensors`` file; nothing in it is executed.

    Raises
    ------
    WeightsError
        When it is missing, no plain checkpoint, or its tensors are no SAM decoder.
    """
    tensors = read_tensors(path)
    encoder = {name: value for name, value in tensors.items() if name.startswith(_ENCODER)}
    try:
        decoder = Decoder.from_state(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path} holds no SAM decoder. {error.message}") from error
    state = {name: value.detach() for name, value in decoder.state_dict().items()}
    if not encoder:
        return DecoderFile(state, None, None)
    return DecoderFile(
        state, tensors_digest(encoder), _model_type(encoder, path), tuple(_digests_of_fewer_bits(encoder))
    )


def _model_type(encoder: Mapping[str, Tensor], path: Path) -> str | None:
    try:
        return detect_model_type(encoder, path)
    except WeightsError:
        return None  # a registered one: its digest tells it


def _digests_of_fewer_bits(encoder: Mapping[str, Tensor]) -> list[str]:
    """Digests of a float32 encoder as float16 and bfloat16, where all of its values survive that."""
    found = []
    for dtype in _SMALLER:
        if all(t.dtype == torch.float32 and torch.equal(t.to(dtype).float(), t) for t in encoder.values()):
            found.append(tensors_digest({name: tensor.to(dtype) for name, tensor in encoder.items()}))
    return found
