"""Turns stitched planes into files, by the ending of the output's name.

===========================  ==========================================================================
``NAME.zarr``                OME-Zarr 0.5 (zarr v3), ``0``: (Z, Y, X); a collection of images: one array each
``NAME.tif``, ``NAME.tiff``  one page per plane of the volume, deflate
``NAME.csv``                 ``Id,Predicted``: run lengths, 1-based, row-major, as the ink contests take them
``NAME.png``                 one PNG; only for a prediction of one plane
``NAME``                     no ending: a folder with one PNG per predicted plane, named as the image or plane
===========================  ==========================================================================

Masks are uint8, 0 and 255. With probabilities they are float32 in zarr and TIFF (NaN: not predicted), and
0…255 in PNG. Planes that were not predicted are missing where a plane is a file or a line; they are empty
chunks or pages elsewhere, and the list of those predicted stands in the metadata.

An output appears under its name only when it is whole; an older one of that name is replaced then, as a whole: no
picture of an earlier prediction stays beside the new ones. Images that differ in their endings only keep these.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from PIL import Image

from embedcache.files import storage_error, write_file
from embedcache.results.output_place import (
    PICTURES_NOTE,
    check_one_plane,
    check_place,
    whole_file,
    whole_folder,
)
from embedcache.results.planes import Planes
from embedcache.results.rle import csv_line, encode_runs
from embedcache.results.zarr_out import create_array, multiscale

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Values:
    """How probabilities become stored values.

    Parameters
    ----------
    threshold : float
        Probability above which a pixel is in the mask.
    probabilities : bool
        Store probabilities instead of a mask.
    """

    threshold: float
    probabilities: bool = False

    def mask(self, plane: Floats) -> npt.NDArray[np.bool_]:
        """The binary mask; not predicted is False."""
        return np.asarray(plane > self.threshold, dtype=np.bool_)

    def stored(self, plane: Floats) -> Array:
        """For zarr and TIFF: uint8 0/255, or float32."""
        return plane if self.probabilities else self.mask(plane).astype(np.uint8) * np.uint8(255)

    def picture(self, plane: Floats) -> npt.NDArray[np.uint8]:
        """For PNG: uint8 0/255, or probabilities on 0…255."""
        if not self.probabilities:
            return np.asarray(self.stored(plane), dtype=np.uint8)
        return np.round(np.nan_to_num(plane) * 255).astype(np.uint8)

    @property
    def dtype(self) -> str:
        """The stored dtype of zarr and TIFF."""
        return "float32" if self.probabilities else "uint8"


def write_masks(
    output: Path, planes: Planes, values: Values, *, about: dict[str, Any], done: Any = None
) -> None:
    """Write a prediction in the form that the output's ending asks for.

    Parameters
    ----------
    output : Path
        Where to; see the table above.
    planes : Planes
        The prediction; each predicted plane is asked for once, in order.
    values : Values
        Threshold, and masks or probabilities.
    about : dict
        JSON that is kept beside the values: checkpoint, store, threshold; its ``geometry`` (scale and voxel size
        of the encoded level, z y x) gives a zarr its scale.
    done : callable, optional
        Called with no argument after each plane.

    Raises
    ------
    InputError
        For a single PNG of several planes, and as :func:`check_place` says.
    StorageError
        When the disk refuses.
    """
    check_place(output, probabilities=values.probabilities)
    check_one_plane(output, len(planes.planes))
    writer = {".zarr": _write_zarr, ".tif": _write_tiff, ".tiff": _write_tiff, ".csv": _write_rle}.get(
        output.suffix.lower(), _write_pngs
    )
    about = {**about, "predicted": [planes.names[plane] for plane in planes.planes]}
    try:
        writer(output, planes, values, about, _Ticking(planes, done))
    except OSError as error:
        raise storage_error(error, output) from error


@dataclass
class _Ticking:
    """Gives the stitched planes in order and reports each."""

    planes: Planes
    done: Any

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        for plane in self.planes.planes:
            yield plane, self.planes.probabilities(plane)
            if self.done is not None:
                self.done()


# zarr


def _write_zarr(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    names = plane_files(planes)
    geometry = about.get("geometry") or {}
    with whole_folder(output) as folder:
        group = zarr.open_group(str(folder), mode="w", zarr_format=3)
        if planes.uniform:
            height, width = planes.sizes[0]
            array = create_array(group, "0", (len(planes.sizes), height, width), values.dtype)
            for plane, stitched in each:
                array[plane] = values.stored(stitched)
            group.attrs["ome"] = {
                "version": "0.5",
                "multiscales": [multiscale(output.stem, "zyx", geometry)],
            }
        else:
            for plane, stitched in each:
                image = group.create_group(names[plane])
                array = create_array(image, "0", stitched.shape, values.dtype)
                array[...] = values.stored(stitched)
                placed = multiscale(names[plane], "yx", geometry)
                image.attrs["ome"] = {"version": "0.5", "multiscales": [placed]}
        group.attrs["embedcache"] = about


# TIFF, PNG, run lengths


def _write_tiff(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    empty = np.nan if values.probabilities else 0
    following = 0

    def write(writer: tifffile.TiffWriter, page: Array | None) -> None:
        """Write the page of the plane that follows; None: it is not predicted."""
        note = {"plane": planes.names[following], "is_predicted": page is not None}
        if following == 0:
            note |= about
        if page is None:
            page = np.full(planes.sizes[following], empty, values.dtype)
        options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
        writer.write(page, description=json.dumps(note), contiguous=False, **options)

    with whole_file(output) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        for plane, stitched in each:
            while following < plane:  # pages stay in step with planes
                write(writer, None)
                following += 1
            write(writer, values.stored(stitched))
            following += 1
        while following < len(planes.sizes):
            write(writer, None)
            following += 1


def _write_pngs(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    if output.suffix.lower() == ".png":
        for _, stitched in each:
            write_file(output, png_bytes(values.picture(stitched)))
        return
    names = plane_files(planes)
    files = [f"{names[plane]}.png" for plane in planes.planes]
    with whole_folder(output) as folder:
        for name, (_, stitched) in zip(files, each, strict=True):
            write_file(folder / name, png_bytes(values.picture(stitched)))
        write_file(folder / PICTURES_NOTE, json.dumps({**about, "files": files}, indent=1).encode())


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of grey pixels (height, width)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def plane_files(planes: Planes) -> list[str]:
    """What each plane is called in files: the image's stem, its whole name where stems are equal, or ``z0012``."""
    if planes.uniform and len(planes.sizes) == 1 and not planes.names[0].startswith("z="):
        return [planes.names[0].replace("/", "_")]  # several planes became this one
    if planes.uniform:
        digits = max(4, len(str(len(planes.sizes) - 1)))
        return [f"z{plane:0{digits}d}" for plane in range(len(planes.sizes))]
    stems = [Path(name).stem for name in planes.names]
    often = Counter(stems)
    return [stem if often[stem] == 1 else name for stem, name in zip(stems, planes.names, strict=True)]


def _write_rle(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    names = list(planes.names) if planes.uniform else plane_files(planes)
    title = getattr(planes, "title", None)  # a single mask with a name of its own

    def lines() -> Iterator[bytes]:
        yield csv_line("Id", "Predicted")
        for plane, stitched in each:
            yield csv_line(title or names[plane], encode_runs(values.mask(stitched)))

    write_file(output, lines())
