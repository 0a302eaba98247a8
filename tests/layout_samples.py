"""Volumes, fragments, volpkgs and segments on disk, as the software of scroll people writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import tifffile
import zarr
from PIL import Image

SURFACE = np.random.default_rng(65).integers(0, 65536, (65, 48, 40)).astype(np.uint16)
"""A surface volume as fragments and segments have it: 65 layers of 16 bits."""

VALUES = np.random.default_rng(7).integers(0, 255, (6, 30, 40)).astype(np.uint8)


def write_layers(folder: Path, values: np.ndarray = SURFACE, digits: int = 2) -> Path:
    """One TIFF per plane: 00.tif, 01.tif, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for plane, pixels in enumerate(values):
        tifffile.imwrite(folder / f"{plane:0{digits}}.tif", pixels)
    return folder


def write_fragment(folder: Path, values: np.ndarray = SURFACE) -> Path:
    """A fragment as the ink competition gave it out."""
    write_layers(folder / "surface_volume", values)
    size = values.shape[1:]
    ink = np.zeros(size, np.uint8)
    ink[10:20, 10:30] = 255
    Image.fromarray((values[32 % len(values)] >> 8).astype(np.uint8)).save(folder / "ir.png")
    Image.fromarray(ink).save(folder / "inklabels.png")
    Image.fromarray(np.full(size, 255, np.uint8)).save(folder / "mask.png")
    return folder


def write_volume(folder: Path, values: np.ndarray = VALUES, **said: Any) -> Path:
    """A volume of a volpkg: zero-padded slices beside what volume-cartographer says about them."""
    write_layers(folder, values, digits=5)
    slices, height, width = values.shape
    meta = {"type": "vol", "name": f"scan {folder.name}", "uuid": folder.name, "voxelsize": 7.91,
            "min": 0.0, "max": 65535.0, "slices": slices, "height": height, "width": width}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta | said))
    return folder


def write_volpkg(folder: Path, *names: str) -> Path:
    """A volpkg with these volumes, each of its own pixels."""
    (folder / "paths").mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"name": "PHerc0", "version": 7, "materialthickness": 300.0})
    )
    for number, name in enumerate(names):
        write_volume(folder / "volumes" / name, np.roll(VALUES, number, axis=0))
    return folder


def write_mesh(folder: Path) -> Path:
    """The mesh of a segment, as tifxyz."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in "xyz":
        tifffile.imwrite(folder / f"{name}.tif", np.full((8, 9), -1, np.float32))
    (folder / "meta.json").write_text(json.dumps({"format": "tifxyz", "type": "seg", "scale": [0.05, 0.05]}))
    return folder


def write_zarr2(path: Path, values: np.ndarray, *, separator: str = "/") -> Path:
    """A Zarr v2 array as zarr-python writes it."""
    array = zarr.create_array(
        path, shape=values.shape, chunks=(1, 4, 16, 16)[-values.ndim :], dtype=values.dtype, zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": separator},
    )  # fmt: skip
    array[:] = values
    return path


def write_ome(path: Path, values: np.ndarray = VALUES, *, levels: int = 2, separator: str = "/") -> Path:
    """An OME-Zarr 0.4 group with the levels that vesuvius writes: every second pixel, scale 1, 2, 4."""
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [2.0**level] * 3}]}
        for level in range(levels)
    ]
    attributes = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets, "type": "gaussian"}]}
    zarr.create_group(path, zarr_format=2, attributes=attributes)
    for level in range(levels):
        step = 2**level
        write_zarr2(path / str(level), values[::step, ::step, ::step], separator=separator)
    return path


def write_sharded(path: Path, values: np.ndarray = VALUES) -> Path:
    """A sharded Zarr v3 array, by tensorstore."""
    inner = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "gzip", "configuration": {"level": 1}},
    ]
    codec = {"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 8, 8], "codecs": inner}}
    grid = {"name": "regular", "configuration": {"chunk_shape": [4, 16, 16]}}
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)},
         "metadata": {"codecs": [codec], "chunk_grid": grid}},
        create=True, dtype=str(values.dtype), shape=values.shape,
    ).result()  # fmt: skip
    store[...] = values
    return path


def write_sparse(path: Path, shape: tuple[int, ...], chunk: int = 128) -> Path:
    """A volume of which no chunk is there, as a masked scroll's outside."""
    zarr.create_array(path, shape=shape, chunks=(chunk,) * 3, dtype="uint8", zarr_format=2)
    return path
