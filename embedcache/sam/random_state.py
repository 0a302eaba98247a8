"""Turns a seed into a full SAM state dict, the same on every machine: untrained weights for tests and trials.

The recipe (``RANDOM_RECIPE`` = 1):

* Two ``torch.Generator`` on the CPU, one for the image encoder and one for the decoder, are seeded with the
  first eight bytes of SHA-256 of ``"embedcache random recipe 1: PART: SEED"``. So the decoder of a seed is the
  same for every model type.
* Parameters and buffers are drawn in the sorted order of their names, each from one 60-bit integer a value.
  Integers, and not torch's normal draws, because those differ in their last bits between kinds of CPU.
* ``bell(σ)``: the four 15-bit pieces of the integer, summed, centred and scaled: a bell with standard deviation
  σ that ends at ±3.46 σ. ``flat(b)``: the lowest 24 bits as a uniform value in [−b, b).

=====================================================  ==================================================
norms                                                  weight 1, bias 0, nothing drawn
``pos_embed``                                          bell(0.02): segment-anything itself starts at zero,
``rel_pos_h``, ``rel_pos_w``                           bell(0.05)  and a forgotten term would go unseen
other weights of the image encoder                     bell(1/√fan-in); its biases bell(0.05)
``positional_encoding_gaussian_matrix``, embeddings    bell(1)
other weights and biases of the decoder                flat(1/√fan-in), as torch's own layers start
=====================================================  ==================================================

A registered encoder is drawn by the same table: what has more than one axis is a weight, the rest biases; a norm's
running variance starts at 1, and buffers of integers at 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from embedcache.sam.parts import build_decoder_parts, build_encoder

RANDOM_RECIPE = 1
"""Revision of the recipe above; another recipe gives other weights, so it gets another number."""

_NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    type(build_encoder("vit_tiny").get_submodule("neck.1")),  # SAM's LayerNorm2d
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)
_PIECE_BITS = 15
_PIECES = 4
_AT_ONCE = 1 << 16
# Sum of four independent uniform integers 0…2¹⁵−1: its mean and standard deviation
_BELL_MEAN = _PIECES * (2**_PIECE_BITS - 1) / 2
_BELL_STD = math.sqrt(_PIECES * (2 ** (2 * _PIECE_BITS) - 1) / 12)


def random_encoder_state(model_type: str, seed: int) -> dict[str, Tensor]:
    """Untrained weights of an image encoder, keys ``image_encoder.*``, float32."""
    root = nn.ModuleDict({"image_encoder": build_encoder(model_type)})
    return dict(_draw_all(root, _generator("encoder", seed)))


def random_decoder_state(seed: int) -> dict[str, Tensor]:
    """Untrained weights of the decoder, keys ``mask_decoder.*`` and ``prompt_encoder.*``, float32."""
    prompt_encoder, mask_decoder = build_decoder_parts()
    root = nn.ModuleDict({"mask_decoder": mask_decoder, "prompt_encoder": prompt_encoder})
    return dict(_draw_all(root, _generator("decoder", seed)))


def _generator(part: str, seed: int) -> torch.Generator:
    text = f"embedcache random recipe {RANDOM_RECIPE}: {part}: {seed}"
    return torch.Generator("cpu").manual_seed(
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    )


def _draw_all(root: nn.Module, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, empty in sorted(root.state_dict().items()):
        owner_name, _, own_name = name.rpartition(".")
        yield name, _draw(root.get_submodule(owner_name), own_name, name, empty, generator)


def _draw(owner: nn.Module, own_name: str, name: str, empty: Tensor, generator: torch.Generator) -> Tensor:
    shape = empty.shape
    if not empty.is_floating_point():
        return torch.zeros(shape, dtype=empty.dtype)
    if isinstance(owner, _NORMS):
        return torch.ones(shape) if own_name in ("weight", "running_var") else torch.zeros(shape)
    if own_name == "pos_embed":
        return _bell(shape, 0.02, generator)
    if own_name in ("rel_pos_h", "rel_pos_w"):
        return _bell(shape, 0.05, generator)
    if own_name == "positional_encoding_gaussian_matrix" or isinstance(owner, nn.Embedding):
        return _bell(shape, 1.0, generator)
    if name.startswith("image_encoder."):
        return _bell(shape, 1 / math.sqrt(_fan_in(shape)) if len(shape) > 1 else 0.05, generator)
    return _flat(shape, 1 / math.sqrt(_fan_in(owner.get_parameter("weight").shape)), generator)


def _fan_in(weight: torch.Size) -> int:
    """Torch's own notion: values of one row of the weight (for a transposed convolution: output channels)."""
    return math.prod(weight[1:])


def _in_pieces(shape: torch.Size, draw: Callable[[int], Tensor]) -> Tensor:
    """A tensor drawn piece by piece, in order: its integers and doubles would take many times its own memory."""
    drawn = torch.empty(shape)
    for piece in torch.split(drawn.view(-1), _AT_ONCE):
        piece.copy_(draw(len(piece)))
    return drawn


def _integers(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2 ** (_PIECE_BITS * _PIECES), (count,), generator=generator, dtype=torch.int64)


def _bell(shape: torch.Size, std: float, generator: torch.Generator) -> Tensor:
    def draw(count: int) -> Tensor:
        integers = _integers(count, generator)
        total = torch.zeros_like(integers)
        for piece in range(_PIECES):
            total += (integers >> (piece * _PIECE_BITS)) & (2**_PIECE_BITS - 1)
        centred: Tensor = total.double() - _BELL_MEAN
        return centred * (std / _BELL_STD)

    return _in_pieces(shape, draw)


def _flat(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    def draw(count: int) -> Tensor:
        fraction: Tensor = (_integers(count, generator) & (2**24 - 1)).double() / 2**23 - 1
        return fraction * bound

    return _in_pieces(shape, draw)
