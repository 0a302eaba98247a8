"""One small volume of each row of the table of formats, written by the software that its users have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import tensorstore
import tifffile
import zarr
from PIL import Image

SURFACE = np.random.default_rng(65).integers(0, 65536, (65, 48, 40)).astype(np.uint16)
"""A surface volume as fragments and segments have it: 65 layers of 16 bits."""

VALUES = np.random.default_rng(7).integers(0, 255, (6, 30, 40)).astype(np.uint8)


@dataclass(frozen=True)
class Sample:
    """What is given to ``open_volume``, and the pixels (Z, Y, X) that must come out."""

    source: str
    pixels: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)


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


def _ome(folder: Path) -> Sample:
    write_ome(folder / "scroll.zarr")
    return Sample(str(folder / "scroll.zarr"), VALUES[::2, ::2, ::2], {"level": 1})


def _bare_group(folder: Path) -> Sample:
    for level in range(2):
        write_zarr2(folder / "v.zarr" / str(level), VALUES[:: 2**level], separator=".")
    return Sample(str(folder / "v.zarr"), VALUES[::2], {"level": 1})


def _array(folder: Path) -> Sample:
    return Sample(str(write_sharded(folder / "v.zarr")), VALUES)


def _tiff_folder(folder: Path) -> Sample:
    return Sample(str(write_layers(folder / "v", SURFACE[:12], digits=1)), SURFACE[:12])


def _tiff_sizes(folder: Path) -> Sample:
    (folder / "v").mkdir()
    tifffile.imwrite(folder / "v" / "1.tif", VALUES[0])
    tifffile.imwrite(folder / "v" / "2.tif", VALUES[1, :20])
    return Sample(str(folder / "v"), VALUES[:1])


def _tiff(folder: Path) -> Sample:
    tifffile.imwrite(folder / "v.tif", SURFACE[:6], imagej=True)
    return Sample(str(folder / "v.tif"), SURFACE[:6])


def _images(folder: Path) -> Sample:
    (folder / "v").mkdir()
    for plane in range(3):
        Image.fromarray(VALUES[plane]).save(folder / "v" / f"{plane}.png")
    return Sample(str(folder / "v"), VALUES[:3])


def _image(folder: Path) -> Sample:
    Image.fromarray(VALUES[0]).save(folder / "v.png")
    return Sample(str(folder / "v.png"), VALUES[:1])


def _npy(folder: Path) -> Sample:
    np.save(folder / "v.npy", VALUES)
    return Sample(str(folder / "v.npy"), VALUES)


def _hdf5(folder: Path) -> Sample:
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_dataset("volumes/raw", data=VALUES, chunks=(2, 16, 16), compression="gzip")
    return Sample(f"{folder}/v.h5:volumes/raw", VALUES)


def _nifti(folder: Path) -> Sample:
    nibabel.save(nibabel.Nifti1Image(VALUES.T, np.eye(4)), folder / "v.nii.gz")
    return Sample(str(folder / "v.nii.gz"), VALUES)


def _nrrd(folder: Path) -> Sample:
    nrrd.write(str(folder / "v.nrrd"), VALUES, {"encoding": "gzip"}, index_order="C")
    return Sample(str(folder / "v.nrrd"), VALUES)


def _fragment(folder: Path) -> Sample:
    return Sample(str(write_fragment(folder / "a")), SURFACE)


def _infrared(folder: Path) -> Sample:
    write_fragment(folder / "a")
    return Sample(f"fragment:{folder / 'a'}", (SURFACE[32:33] >> 8).astype(np.uint8), {"image": "ir"})


def _volpkg(folder: Path) -> Sample:
    return Sample(str(write_volpkg(folder / "PHerc0.volpkg", "20230205180739")), VALUES)


def _volpkg_volume(folder: Path) -> Sample:
    write_volpkg(folder / "PHerc0.volpkg", "20230205180739", "20230206171837")
    return Sample(f"{folder}/PHerc0.volpkg/volumes/20230206171837", np.roll(VALUES, 1, axis=0))


def _layers(folder: Path) -> Sample:
    segment = folder / "PHerc0.volpkg" / "paths" / "20230827161847"
    write_layers(segment / "layers")
    Image.fromarray(np.full((48, 40), 255, np.uint8)).save(segment / "20230827161847_mask.png")
    return Sample(str(segment), SURFACE)


def _surfaces(folder: Path) -> Sample:
    segment = folder / "20230827161847-auto"
    write_mesh(segment / "mesh" / "tifxyz")
    write_layers(segment / "surface-volumes" / "2.400um-78keV-volume-20260411134726.tifs")
    return Sample(str(segment), SURFACE)


def _trained_segment(folder: Path) -> Sample:
    segment = write_mesh(folder / "20230827161847")
    write_ome(segment / "20230827161847.zarr", levels=1)
    write_ome(segment / "20230827161847_inklabels.zarr", levels=1)
    return Sample(str(segment), VALUES)


MAKERS: dict[str, Callable[[Path], Sample]] = {
    "OME-Zarr group, 0.4 (Zarr v2) or 0.5 (Zarr v3)": _ome,
    "Zarr group without metadata, arrays named `0`, `1`, …": _bare_group,
    "`GROUP/2`, or any bare Zarr array": _array,
    "TIFF folder, all slices alike": _tiff_folder,
    "TIFF folder, slices of different sizes": _tiff_sizes,
    "one TIFF file": _tiff,
    "folder of PNG and JPEG files": _images,
    "one PNG or JPEG": _image,
    "`.npy`": _npy,
    "`FILE.h5:DATASET`": _hdf5,
    "`.nii`, `.nii.gz`": _nifti,
    "`.nrrd`, or `.nhdr` beside its data": _nrrd,
    "fragment: `surface_volume/` beside `ir.png`, `inklabels.png` or `mask.png`": _fragment,
    "fragment with `--image ir`, or any other file of it": _infrared,
    "volpkg: `config.json` beside `volumes/` or `volumes_zarr*/`": _volpkg,
    "`X.volpkg/volumes/ID`": _volpkg_volume,
    "segment with `layers/`": _layers,
    "segment with `surface-volumes/*.zarr` or `*.tifs/`": _surfaces,
    "segment `ID` with `ID.zarr`": _trained_segment,
}
"""By the ``path`` of the row."""
