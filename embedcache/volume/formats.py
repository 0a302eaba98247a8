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
_NIFTI, _FRAGMENT, _VOLPKG = ".nii, .nii.gz", "fragment folder", "volpkg"
_SEGMENT, _REMOTE = "segment folder", "s3:// and https:// (Zarr)"

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
    Format(
        _NIFTI,
        "`.nii`, `.nii.gz`",
        "array",
        "third axis",
        "`.gz` is decoded from its beginning for each plane",
        extra="nifti",
    ),
    Format(
        "NRRD",
        "`.nrrd`, or `.nhdr` beside its data",
        "array",
        "third axis",
        "raw: memory map; gzip, bzip2: decoded once, into memory",
        extra="nrrd",
    ),
    Format(
        _FRAGMENT,
        "fragment: `surface_volume/` beside `ir.png`, `inklabels.png` or `mask.png`",
        "array",
        "one file each",
        "also `fragment:DIR`; the same volume as `DIR/surface_volume`",
    ),
    Format(
        _FRAGMENT,
        "fragment with `--image ir`, or any other file of it",
        "collection",
        "one",
        "the same volume as `DIR/ir.png`",
    ),
    Format(
        _VOLPKG,
        "volpkg: `config.json` beside `volumes/` or `volumes_zarr*/`",
        "array",
        "z",
        "its only volume; of several, one is to be named",
    ),
    Format(
        _TIFF,
        "`X.volpkg/volumes/ID`",
        "array",
        "one file each",
        "slices that `meta.json` counts and that are not there are refused",
    ),
    Format(
        _SEGMENT,
        "segment with `layers/`",
        "array",
        "one file each",
        "the same volume as `SEGMENT/layers`",
    ),
    Format(
        _SEGMENT,
        "segment with `surface-volumes/*.zarr` or `*.tifs/`",
        "array",
        "z",
        "its only surface volume; of several, one is to be named",
    ),
    Format(_SEGMENT, "segment `ID` with `ID.zarr`", "array", "z", "beside its mesh and its labels"),
    Format(
        _REMOTE,
        "`https://HOST/…`, a Zarr group or array",
        "array",
        "z",
        "nothing is listed; chunks are fetched once and kept",
    ),
    Format(
        _REMOTE,
        "`s3://BUCKET/KEY`, a Zarr group or array",
        "array",
        "z",
        "anonymous, or with the environment's credentials, which need botocore",
        extra="remote",
    ),
)
"""In the order of the page."""


_KEYS = {
    "zarr": _ZARR, "tiff": _TIFF, "images": _IMAGES, "npy": ".npy", "hdf5": "FILE.h5:DATASET", "nifti": _NIFTI,
    "nrrd": "NRRD", "fragment": _FRAGMENT, "volpkg": _VOLPKG, "segment": _SEGMENT, "remote": _REMOTE,
}  # fmt: skip


def format_key(kind: str) -> str:
    """The key of a kind of volume, of a layout, or of ``remote``."""
    return _KEYS[kind]


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
