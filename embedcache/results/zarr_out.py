"""Turns the size and place of a prediction into zarr arrays and their OME-NGFF metadata."""

from __future__ import annotations

from typing import Any

import zarr

CHUNK = 512
"""Rows and columns of a chunk of a written zarr array."""


def create_array(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """An array to fill: masks (uint8), or probabilities (float32), of which NaN says that nothing is predicted."""
    chunks = (*(1 for _ in shape[:-2]), min(CHUNK, shape[-2]), min(CHUNK, shape[-1]))
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        fill_value=float("nan") if dtype == "float32" else 0,
        dimension_names=tuple("zyx"[-len(shape) :]),
    )


def multiscale(name: str, axes: str, geometry: dict[str, Any]) -> dict[str, Any]:
    """OME-NGFF 0.5 metadata of one level, in micrometres, or in voxels of the base where their size is unknown."""
    scale = [float(step) for step in geometry.get("scale") or (1.0, 1.0, 1.0)]
    voxel = geometry.get("voxel_size")
    if voxel:
        scale = [step * float(size) for step, size in zip(scale, voxel, strict=True)]
    unit = {"unit": "micrometer"} if voxel else {}
    placed = {"type": "scale", "scale": scale[-len(axes) :]}
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [placed]}],
    }
