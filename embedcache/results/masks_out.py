"""Turns stitched planes into files, by the ending of the output's name.

===========================  ==========================================================================
``NAME.zarr``                OME-Zarr 0.5 (zarr v3), ``0``: (Z, Y, X); a collection of images: one array each
``NAME.tif``, ``NAME.tiff``  one page per plane, deflate
``NAME.csv``                 ``Id,Predicted``: run lengths, 1-based, row-major, as the ink contests take them
``NAME.png``                 one PNG; only for a prediction of one plane
anything else                a folder with one PNG per predicted plane, named as the image or plane
===========================  ==========================================================================

Masks are uint8, 0 and 255. With probabilities they are float32 in zarr and TIFF (NaN: not predicted), and
0…255 in PNG. Planes that were not predicted are missing where a plane is a file or a line; they are empty
chunks or pages elsewhere, and the list of those predicted stands in the metadata.

An output appears under its name only when it is whole; an older one of that name is replaced then.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from PIL import Image

from embedcache.errors import InputError
from embedcache.files import PARTIAL_SUFFIX, fsync_folder, make_folder, storage_error, write_file

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

CHUNK = 512
"""Rows and columns of a chunk of a written zarr array."""


class Planes(Protocol):
    """What a writer needs to know of a prediction."""

    @property
    def planes(self) -> Sequence[int]:
        """Planes that are predicted, in order."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of every plane of the volume, predicted or not."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every plane: the image's file name, or ``z=12``."""

    @property
    def uniform(self) -> bool:
        """Whether the planes are those of one array."""

    def probabilities(self, plane: int) -> Floats:
        """Stitched probabilities of one plane, NaN where not predicted."""


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


def check_output(output: Path, planes: Planes, values: Values) -> None:
    """Refuse an output that cannot hold this prediction, before any work.

    Raises
    ------
    InputError
        For a ``.png`` of several planes, run lengths of probabilities, or a file where a folder is meant.
    """
    ending = output.suffix.lower()
    if ending == ".png" and len(planes.planes) != 1:
        raise InputError(
            f"{output}: one PNG holds one plane, and {len(planes.planes)} planes are predicted.",
            hint="Give a folder (a name without ending), a .tif or a .zarr.",
        )
    if ending == ".csv" and values.probabilities:
        raise InputError(
            f"{output}: run lengths hold masks, not probabilities.",
            hint="Leave probabilities out, or write a .zarr, .tif or folder.",
        )
    if ending in {".png", ".csv", ".tif", ".tiff"} and output.is_dir():
        raise InputError(f"{output} is a folder, and a file of that name is to be written.")
    if ending == ".zarr" and output.is_dir() and any(output.iterdir()) and not _is_masks(output):
        raise InputError(
            f"{output} exists and was not written by predict: it is not replaced.",
            hint="Choose another name.",
        )
    if output.is_file() and ending not in {".png", ".csv", ".tif", ".tiff"}:
        raise InputError(f"{output} is a file, and a folder of that name is to be written.")


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
        JSON that is kept beside the values: checkpoint, store, threshold.
    done : callable, optional
        Called with no argument after each plane.

    Raises
    ------
    InputError
        As :func:`check_output`.
    StorageError
        When the disk refuses.
    """
    check_output(output, planes, values)
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
    partial = output.with_name(output.name + PARTIAL_SUFFIX)
    make_folder(output.parent)
    shutil.rmtree(partial, ignore_errors=True)
    group = zarr.open_group(str(partial), mode="w", zarr_format=3)
    if planes.uniform:
        height, width = planes.sizes[0]
        array = _create_array(group, "0", (len(planes.sizes), height, width), values)
        for plane, stitched in each:
            array[plane] = values.stored(stitched)
        group.attrs["ome"] = {"version": "0.5", "multiscales": [_multiscale(output.stem, "zyx")]}
    else:
        for plane, stitched in each:
            name = Path(planes.names[plane]).stem
            image = group.create_group(name)
            array = _create_array(image, "0", stitched.shape, values)
            array[...] = values.stored(stitched)
            image.attrs["ome"] = {"version": "0.5", "multiscales": [_multiscale(name, "yx")]}
    group.attrs["embedcache"] = about
    _replace_folder(partial, output)


def _create_array(group: zarr.Group, name: str, shape: tuple[int, ...], values: Values) -> Any:
    chunks = (*(1 for _ in shape[:-2]), min(CHUNK, shape[-2]), min(CHUNK, shape[-1]))
    return group.create_array(
        name,
        shape=shape,
        dtype=values.dtype,
        chunks=chunks,
        fill_value=float("nan") if values.probabilities else 0,
        dimension_names=tuple("zyx"[-len(shape) :]),
    )


def _multiscale(name: str, axes: str) -> dict[str, Any]:
    """OME-NGFF 0.5 metadata of one level; units are volume px of the encoded level."""
    scale = {"type": "scale", "scale": [1.0] * len(axes)}
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space"} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }


def _is_masks(folder: Path) -> bool:
    """Whether a folder is a zarr that an earlier predict wrote, which may be replaced."""
    metadata = folder / "zarr.json"
    if not metadata.is_file():
        return False
    attributes = json.loads(metadata.read_text()).get("attributes", {})
    return "predicted" in attributes.get("embedcache", {})


def _replace_folder(partial: Path, output: Path) -> None:
    """Put a finished folder under its name; the older one is set aside first, then removed."""
    old = output.with_name(output.name + ".old" + PARTIAL_SUFFIX)
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    fsync_folder(output.parent)
    shutil.rmtree(old, ignore_errors=True)


# TIFF, PNG, run lengths


def _write_tiff(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    partial = output.with_name(output.name + PARTIAL_SUFFIX)
    make_folder(output.parent)
    empty = np.nan if values.probabilities else 0
    following = 0

    def write(writer: tifffile.TiffWriter, page: Array, name: str) -> None:
        note = {"plane": name, **about} if following == 0 else {"plane": name}
        options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
        writer.write(page, description=json.dumps(note), contiguous=False, **options)

    with tifffile.TiffWriter(partial, bigtiff=True) as writer:
        for plane, stitched in each:
            while following < plane:  # pages stay in step with planes
                blank = np.full(planes.sizes[following], empty, values.dtype)
                write(writer, blank, planes.names[following])
                following += 1
            write(writer, values.stored(stitched), planes.names[plane])
            following += 1
        while following < len(planes.sizes):
            write(writer, np.full(planes.sizes[following], empty, values.dtype), planes.names[following])
            following += 1
    partial.replace(output)
    fsync_folder(output.parent)


def _write_pngs(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    single = output.suffix.lower() == ".png"
    for plane, stitched in each:
        stream = io.BytesIO()
        Image.fromarray(values.picture(stitched)).save(stream, format="PNG")
        name = output if single else output / f"{picture_name(planes, plane)}.png"
        write_file(name, stream.getvalue())
    if not single:
        write_file(output / "prediction.json", json.dumps(about, indent=1).encode())


def picture_name(planes: Planes, plane: int) -> str:
    """Stem of a plane's picture: the image's own, or ``z0012`` with room for all planes."""
    if not planes.uniform:
        return Path(planes.names[plane]).stem
    return f"z{plane:0{max(4, len(str(len(planes.sizes) - 1)))}d}"


def _write_rle(output: Path, planes: Planes, values: Values, about: dict[str, Any], each: _Ticking) -> None:
    def lines() -> Iterator[bytes]:
        yield _csv_line("Id", "Predicted")
        for plane, stitched in each:
            yield _csv_line(Path(planes.names[plane]).stem, run_lengths(values.mask(stitched)))

    write_file(output, lines())


def _csv_line(*cells: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def run_lengths(mask: npt.NDArray[np.bool_]) -> str:
    """``start length start length …`` of the True runs of a mask, 1-based, row by row."""
    flat = np.concatenate(([False], mask.ravel(), [False]))
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = changes[::2], changes[1::2]
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))
