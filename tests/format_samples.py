"""One small volume of each row of the table of formats, written by the software that its users have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
from layout_samples import (
    SURFACE,
    VALUES,
    write_fragment,
    write_layers,
    write_mesh,
    write_ome,
    write_sharded,
    write_volpkg,
    write_zarr2,
)
from PIL import Image
from volume_servers import VolumeServer


@dataclass(frozen=True)
class Sample:
    """What is given to ``open_volume``, and the pixels (Z, Y, X) that must come out."""

    source: str
    pixels: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    served: Path | None = None

    @contextmanager
    def there(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """What is given, once a web server (and bucket) of what is served runs; it lists nothing."""
        if self.served is None:
            yield self.source
            return
        with VolumeServer(self.served) as server:
            monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(self.served.parent / "chunks"))
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            yield self.source.format(server=server.url)


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


def _web(folder: Path) -> Sample:
    write_ome(folder / "served" / "54keV_7.91um.zarr")
    return Sample("{server}/54keV_7.91um.zarr/", VALUES[::2, ::2, ::2], {"level": 1}, folder / "served")


def _bucket(folder: Path) -> Sample:
    write_zarr2(folder / "served" / "bucket" / "PHerc0" / "v.zarr", VALUES, separator=".")
    return Sample("s3://bucket/PHerc0/v.zarr", VALUES, {"anon": True}, folder / "served")


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
    "`https://HOST/…`, a Zarr group or array": _web,
    "`s3://BUCKET/KEY`, a Zarr group or array": _bucket,
}
"""By the ``path`` of the row."""
