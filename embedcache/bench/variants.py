"""Turns a variant's name into an encoder that runs: ours, stock segment-anything's, or another library's.

All take and give the same: ``(B, 3, 1024, 1024)`` float32 to ``(B, 256, 64, 64)`` on the device they run on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embedcache.bench.peers import build_fast, build_transformers
from embedcache.errors import ConfigError
from embedcache.heap import keep_freed_memory
from embedcache.sam.encoder import Encoder, Precision
from embedcache.sam.parts import build_encoder
from embedcache.sam.weights import Weights

Maker = Literal["stock", "ours", "hf", "fast"]
Run = Callable[[Tensor], Tensor]

REFERENCE = "stock_fp32"
"""What every other variant's time and result is compared with."""


@dataclass(frozen=True)
class Variant:
    """One way to run SAM's image encoder.

    Parameters
    ----------
    name : str
        As in the figures.
    label : str
        As people read it.
    maker : {"stock", "ours", "hf", "fast"}
        Whose code runs.
    precision : {"bf16", "fp32"}
        Of weights and activations.
    compiled : bool
        Whether ``torch.compile`` is used.
    package : str or None
        What must be installed for it, beyond what embedcache needs.
    """

    name: str
    label: str
    maker: Maker
    precision: Precision
    compiled: bool = False
    package: str | None = None


VARIANTS = (
    Variant(REFERENCE, "stock, eager, float32", "stock", "fp32"),
    Variant("stock_bf16", "stock, eager, bf16", "stock", "bf16"),
    Variant("hf_fp32", "transformers, sdpa, float32", "hf", "fp32", package="transformers"),
    Variant("hf_bf16", "transformers, sdpa, bf16", "hf", "bf16", package="transformers"),
    Variant(
        "fast_bf16", "segment-anything-fast, bf16", "fast", "bf16", True, package="segment_anything_fast"
    ),
    Variant("ours_fp32", "embedcache, float32", "ours", "fp32"),
    Variant("ours_bf16", "embedcache, bf16", "ours", "bf16"),
    Variant("ours_bf16_compiled", "embedcache, bf16, compiled", "ours", "bf16", True),
)
"""All variants, in the order in which they take turns."""


@dataclass(frozen=True)
class Built:
    """A variant that runs.

    Parameters
    ----------
    run : callable
        ``(B, 3, 1024, 1024)`` float32 on the device to ``(B, 256, 64, 64)`` there.
    numerics : dict of str to JSON
        What ours has decided; empty for the others.
    """

    run: Run
    numerics: dict[str, Any]


def chosen(only: tuple[str, ...]) -> tuple[Variant, ...]:
    """The variants of these names, in their order; all without names.

    Raises
    ------
    ConfigError
        For a name that is none.
    """
    names = [variant.name for variant in VARIANTS]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: expected one of {', '.join(names)}.")
    return tuple(variant for variant in VARIANTS if not only or variant.name in only)


def why_not_here(variant: Variant) -> str | None:
    """The reason why a variant cannot be tried on this machine; None when it can."""
    if variant.package is not None and find_spec(variant.package) is None:
        return f"{variant.package} is not installed"
    return None


def build(variant: Variant, weights: Weights, *, device: torch.device, batch: int) -> Built:
    """Build a variant from weights, on a device; ours under its own numerics but for batch and compiling."""
    if variant.maker == "ours":
        if device.type == "cpu":
            keep_freed_memory()  # as the command does
        encoder = Encoder(
            weights,
            device=device,
            precision=variant.precision,
            numerics={"compiled": variant.compiled, "batch": batch},
        )
        return Built(encoder.on_device, encoder.numerics)
    module = _BUILDERS[variant.maker](weights)
    dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
    module = module.to(device=device, dtype=dtype).requires_grad_(False).eval()
    call = torch.compile(module, mode="max-autotune") if variant.compiled else module  # as its makers run it

    @torch.no_grad()
    def run(inputs: Tensor) -> Tensor:
        embeddings: Tensor = call(inputs.to(dtype))
        return embeddings.float()

    return Built(run, {})


def _stock(weights: Weights) -> nn.Module:
    """segment-anything's own image encoder, nothing changed."""
    module = build_encoder(weights.model_type)
    state = {name.removeprefix("image_encoder."): value for name, value in weights.encoder_state().items()}
    module.load_state_dict(state, assign=True)
    return module


_BUILDERS: dict[Maker, Callable[[Weights], nn.Module]] = {
    "stock": _stock,
    "hf": build_transformers,
    "fast": build_fast,
}
