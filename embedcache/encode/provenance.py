"""Turns a job into its provenance: what a store says of where its embeddings come from, and how to do it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from embedcache.encode.options import EncodeOptions
from embedcache.progress import Progress
from embedcache.sam.weights import Weights
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.volume import Volume
from embedcache.volume.origin import UNKNOWN_LICENCE, Origin, origin_of

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
    return {
        "source": volume.source,
        "weights": weights.source,
        "untrained": weights.untrained,
        "licence": options.licence,
        "origin": _origin(options, volume).to_dict(),
        "geometry": geometry_of(volume),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device_name(device),
        "recipe": _recipe(options, weights, spec),
        "asked": dict(words),
    }


def say_licence(
    options: EncodeOptions, volume: Volume, store: EmbeddingStore | None, progress: Progress
) -> None:
    """Say that the data's licence is unknown where a store is made, and that a store keeps its own."""
    if store is None:
        if not _origin(options, volume).licence:
            progress.say(UNKNOWN_LICENCE)
        return
    recorded = Origin.from_dict(store.provenance.get("origin") or {})
    recorded = replace(recorded, licence=recorded.licence or str(store.provenance.get("licence") or ""))
    for option, told, kept in (
        ("--licence", options.licence, recorded.licence),
        ("--citation", options.citation, recorded.citation),
        ("--source-url", options.source_url, recorded.url),
    ):
        if told.strip() and told.strip() != kept:
            said = kept.splitlines()[0] if kept else "none"
            progress.say(f"{store.path} keeps what it was made with ({said}); {option} is for a new store.")


def _origin(options: EncodeOptions, volume: Volume) -> Origin:
    return origin_of(
        volume.source, url=options.source_url, licence=options.licence, citation=options.citation
    )


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
