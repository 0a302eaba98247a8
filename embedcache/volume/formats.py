"""Turns the list of what opens as a volume into the table of docs/volumes.md and a sentence for error messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One kind of thing that opens as a volume.

    Parameters
    ----------
    key : str
        What error messages call it; formats of one key are named once.
    path : str
        What is given, in Markdown.
    opens_as : str
        ``array`` or ``collection``.
    planes : str
        What becomes a plane.
    notes : str
        In Markdown.
    extra : "hdf5", "nifti", "nrrd" or "remote", optional
        What must be installed besides: ``embedcache[EXTRA]``.
    """

    key: str
    path: str
    opens_as: str
    planes: str
    notes: str = ""
    extra: str | None = None


_ZARR, _TIFF, _IMAGES = "OME-Zarr or Zarr (folder)", "TIFF", "PNG or JPEG (file or folder)"

FORMATS: tuple[Format, ...] = (
    Format(
        _ZARR,
        "OME-Zarr group, 0.4 (Zarr v2) or 0.5 (Zarr v3)",
        "array",
        "z",
        "`--level N` takes the N-th dataset of `multiscales`",
    ),
    Format(
        _ZARR,
        "Zarr group without metadata, arrays named `0`, `1`, …",
        "array",
        "z",
        "the levels are probed, the group is never listed",
    ),
    Format(
        _ZARR,
        "`GROUP/2`, or any bare Zarr array",
        "array",
        "z",
        "`GROUP/2` is the same volume as `GROUP` with `--level 2`",
    ),
    Format(
        _TIFF,
        "TIFF folder, all slices alike",
        "array",
        "one file each",
        "numeric order: `2.tif` comes before `10.tif`",
    ),
    Format(_TIFF, "TIFF folder, slices of different sizes", "collection", "one file each"),
    Format(
        _TIFF,
        "one TIFF file",
        "array",
        "one page each",
        "reduced copies of a pyramid are skipped; ImageJ and BigTIFF too",
    ),
    Format(
        _IMAGES,
        "folder of PNG and JPEG files",
        "collection",
        "one file each",
        "also when all have one size",
    ),
    Format(_IMAGES, "one PNG or JPEG", "collection", "one"),
    Format(".npy", "`.npy`", "array", "z", "memory map"),
    Format("FILE.h5:DATASET", "`FILE.h5:DATASET`", "array", "z", extra="hdf5"),
    Format(".nii, .nii.gz", "`.nii`, `.nii.gz`", "array", "third axis", extra="nifti"),
)
"""In the order of the page."""


def formats_table() -> str:
    """The Markdown table of docs/volumes.md, between ``<!-- formats -->`` and ``<!-- /formats -->``."""
    rows = ["| path | opens as | planes | notes |", "|---|---|---|---|"]
    for item in FORMATS:
        install = () if item.extra is None else (f"`pip install 'embedcache[{item.extra}]'`",)
        notes = "; ".join((*((item.notes,) if item.notes else ()), *install))
        rows.append(f"| {item.path} | {item.opens_as} | {item.planes} | {notes + ' ' if notes else ''}|")
    return "\n".join(rows) + "\n"


def known_formats() -> str:
    """What opens, as error messages name it."""
    return ", ".join(dict.fromkeys(item.key for item in FORMATS))
