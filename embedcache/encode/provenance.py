"""Turns a job into its provenance: what a store says of where its embeddings come from, and how to do it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from embedcache.encode.options import EncodeOptions
from embedcache.sam.weights import Weights
from embedcache.store import EncodeSpec
from embedcache.volume import Volume
from embedcache.volume.origin import origin_of

PACKAGES = ("embedcache", "torch", "zarr", "numpy", "segment-anything")
"""Whose versions are kept."""


def provenance_of(
    options: EncodeOptions,
    volume: Volume,
    weights: Weights,
    spec: EncodeSpec,
    device: torch.device,
    words: Mapping[str, Any],
) -> dict[str, Any]:
    """Source, weights, versions, origin, place in the full resolution, recipe and words, as JSON values.

    Parameters
    ----------
    options, volume, weights, spec, device
        Those of the job.
    words : mapping
        The recipe as it was asked for.
    """
    origin = origin_of(
        volume.source, url=options.source_url, licence=options.licence, citation=options.citation
    )
    return {
        "source": volume.source,
        "weights": weights.source,
        "untrained": weights.untrained,
        "licence": options.licence,
        "origin": origin.to_dict(),
        "geometry": geometry_of(volume),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device_name(device),
        "recipe": _recipe(options, weights, spec),
        "asked": dict(words),
    }


def geometry_of(volume: Volume) -> dict[str, Any]:
    """Where the pixels of the level lie in the volume at its full resolution, as JSON values.

    ``scale`` is in voxels of the full resolution per pixel, ``voxel_size`` of the full resolution in ``unit``.
    """
    return {
        "level": volume.level,
        "scale": list(volume.scale),
        "voxel_size": None if volume.voxel_size is None else list(volume.voxel_size),
        "unit": "micrometer",
    }


def device_name(device: torch.device) -> str:
    """``cpu``, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _recipe(options: EncodeOptions, weights: Weights, spec: EncodeSpec) -> dict[str, Any]:
    """What encodes another volume in the same way; the window as numbers, not as the words that found it."""
    return {
        "model": options.model,
        "checkpoint": weights.source,
        "tile": options.tile or "full",
        "overlap": options.overlap,
        "level": options.level,
        "channels": spec.preprocess.channels,
        "window": ":".join(f"{edge:.17g}" for edge in spec.preprocess.window),
        "precision": spec.precision,
        "store_dtype": spec.store_dtype,
    }
