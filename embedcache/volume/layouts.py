"""Turns the folders that scroll people have - fragments, volpkgs, segments - into the path of the pixels in them.

A layout only finds a path that opens by itself, so a volume is the same one whichever way it was named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from embedcache.errors import VolumeError
from embedcache.volume.folder import natural_key
from embedcache.volume.meta import TIFXYZ, is_tifxyz
from embedcache.volume.volume import IMAGE_SUFFIXES, TIFF_SUFFIXES

SCHEME = "fragment:"
SURFACE = "surface_volume"
LAYERS = "layers"
SURFACES = "surface-volumes"
BESIDE_SURFACE = ("ir.png", "inklabels.png", "mask.png")
"""One of these beside ``surface_volume/`` makes a folder a fragment."""

_NO_VOLUME = re.compile(r"_(inklabels|supervision_mask|validation_mask|labels?|mask)(_v\d+)?$", re.IGNORECASE)
_ENDINGS = re.compile(
    r"(\.ome)?\.(zarr|tiff?|tifs|png|jpe?g|npy|h5|hdf5|hdf|nii|nii\.gz|nrrd|nhdr|volpkg)$", re.IGNORECASE
)
_PARTS = {SURFACE, LAYERS, SURFACES, "ir", "inklabels", "mask"}


@dataclass(frozen=True)
class Found:
    """What a folder was recognised as.

    Parameters
    ----------
    path : Path
        The pixels; where there are several to choose from, the folder itself.
    layout : str
        ``fragment``, ``volpkg`` or ``segment``.
    choices : tuple of Path
        All of several volumes, none of which is the obvious one.
    """

    path: Path
    layout: str
    choices: tuple[Path, ...] = ()


def strip_scheme(text: str) -> tuple[str, bool]:
    """The path behind ``fragment:``, and whether it was there."""
    return (text[len(SCHEME) :], True) if text.startswith(SCHEME) else (text, False)


def resolve_layout(folder: Path, *, image: str | None = None, fragment: bool = False) -> Found | None:
    """Find the pixels in a folder of a known layout.

    Parameters
    ----------
    folder : Path
        Any folder.
    image : str, optional
        Which image of a fragment: ``surface``, ``ir``, or the name of something in it, with or without ending.
    fragment : bool
        Whether it was named as a fragment, ``fragment:DIR``.

    Returns
    -------
    Found or None
        None where the layout is not a known one.

    Raises
    ------
    VolumeError
        When the layout is known and what is asked for is not in it.
    """
    if fragment or image is not None:
        return _in_fragment(folder, image, named=fragment)
    if _is_fragment(folder):
        return Found(folder / SURFACE, "fragment")
    if _is_volpkg(folder):
        return _in_volpkg(folder)
    return _in_segment(folder)


def source_stem(source: str) -> str:
    """What people call a volume: its own name, or that of the fragment or segment that it is the pixels of.

    Parameters
    ----------
    source : str
        ``volume.source``, a path or an address.

    Returns
    -------
    str
        ``scroll1`` of ``/data/scroll1.zarr``, ``frag1`` of ``/data/frag1/surface_volume``; never empty.
    """
    address = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None
    split = urlsplit(source) if address else None
    path = source if split is None else unquote(split.path)
    path = re.sub(r"(\.(?:h5|hdf5|hdf)):.*$", r"\1", path, flags=re.IGNORECASE)
    parts = [part for part in PurePosixPath(strip_scheme(path)[0]).parts if part not in ("/", ".", "..")]
    host = "" if split is None else split.hostname or ""
    return _stem_of(parts) or host or "volume"


def _stem_of(parts: list[str]) -> str:
    while parts:
        around, stem = parts[:-1], _ENDINGS.sub("", parts[-1])
        of_something_else = stem in _PARTS or (
            parts[-1].isdigit() and bool(around) and around[-1].endswith(".zarr")
        )
        if around and (of_something_else or around[-1] == SURFACES):
            parts = around
            continue
        return stem
    return ""


def _is_fragment(folder: Path) -> bool:
    return (folder / SURFACE).is_dir() and any((folder / name).is_file() for name in BESIDE_SURFACE)


def image_hint(path: Path, image: str | None) -> str:
    """What to do about ``--image`` or ``fragment:`` beside the path of what is no fragment's folder."""
    if image is None:
        return f"A fragment is a folder with {SURFACE}/ and {', '.join(BESIDE_SURFACE)}."
    if _is_fragment(path.parent):
        return f"Give {path.parent} with --image {image}."
    if _image_in(path, image) is not None:
        return f"{SCHEME}{path} with --image {image} takes it without {SURFACE}/."
    return "--image is for fragment folders; leave it out."


def _image_in(folder: Path, image: str) -> Path | None:
    """The file or folder that ``--image`` names, with or without its ending; None where it is not there."""
    named = PurePosixPath(image).name == image != ".."
    endings = ("", ".png", *TIFF_SUFFIXES, *IMAGE_SUFFIXES) if named else ()
    return next(filter(Path.exists, (folder / (image + end) for end in endings)), None)


def _in_fragment(folder: Path, image: str | None, *, named: bool) -> Found:
    asked = image or "surface"
    if asked == "surface" or not named:
        if not (folder / SURFACE).is_dir():
            what = f"--image {image}: {folder}" if image else str(folder)
            raise VolumeError(
                f"{what} is no fragment folder (it lacks {SURFACE}/).", hint=image_hint(folder, image)
            )
        if asked == "surface":
            return Found(folder / SURFACE, "fragment")
    if (path := _image_in(folder, asked)) is not None:
        return Found(path, "fragment")
    names = sorted(
        (entry.name for entry in folder.iterdir() if not entry.name.startswith(".")), key=natural_key
    )
    raise VolumeError(
        f"--image {asked}: {folder} holds no {asked}.png, {asked}.tif or {asked}.jpg.",
        hint=f"It holds {', '.join(names[:20]) or 'nothing'}; --image surface is {SURFACE}/.",
    )


def _is_volpkg(folder: Path) -> bool:
    if folder.name.lower().endswith(".volpkg"):
        return (folder / "config.json").is_file() or (folder / "volumes").is_dir() or bool(_zarrs_of(folder))
    return (folder / "config.json").is_file() and (folder / "volumes").is_dir()


def _in_volpkg(folder: Path) -> Found:
    slices = [path for path in _folders(folder / "volumes") if _holds_pixels(path)]
    choices = [*slices, *_zarrs_of(folder)]
    if not choices:
        segments = [path for path in _folders(folder / "paths") if (path / LAYERS).is_dir()]
        raise VolumeError(
            f"{folder} holds no volume: neither a folder of volumes/ with slices nor volumes_zarr*/*.zarr.",
            hint=f"It holds {len(segments)} segment(s) with {LAYERS}/: give one, such as {segments[0]}."
            if segments
            else "It was copied in part: fetch a volume of it.",
        )
    return _one_of(folder, "volpkg", choices)


def _zarrs_of(folder: Path) -> list[Path]:
    return [
        path for around in _folders(folder) if around.name.startswith("volumes_zarr")
        for path in _folders(around) if path.name.endswith(".zarr")
    ]  # fmt: skip


def _in_segment(folder: Path) -> Found | None:
    if _holds_slices(folder):
        return None  # a volume by itself, whatever else lies in it
    choices = [folder / LAYERS] if (folder / LAYERS).is_dir() else []
    choices += [path for path in _folders(folder / SURFACES) if path.suffix in (".zarr", ".tifs")]
    own = folder / f"{folder.name}.zarr"
    if own.is_dir() and not (own / "image_embeddings").is_dir():
        choices.append(own)
    elif not choices and (folder / TIFXYZ[0]).is_file() and is_tifxyz(folder):  # a segment under another name
        zarrs = [path for path in _folders(folder) if path.suffix == ".zarr"]
        choices = [path for path in zarrs if not _NO_VOLUME.search(path.stem)]
    if choices:
        return _one_of(folder, "segment", choices)
    if (folder / TIFXYZ[0]).is_file() and is_tifxyz(folder):
        raise VolumeError(
            f"{folder} is a mesh (tifxyz), not pixels; give its surface volume.",
            hint=f"The pixels along it are a folder {LAYERS}/ of TIFF files, a Zarr in {SURFACES}/, or "
            f"{folder.name}.zarr beside x.tif, y.tif and z.tif.",
        )
    return None


def _one_of(folder: Path, layout: str, choices: list[Path]) -> Found:
    return Found(choices[0], layout) if len(choices) == 1 else Found(folder, layout, tuple(choices))


def _holds_slices(folder: Path) -> bool:
    """Whether images in it are numbered, as ``00.tif`` and ``01.tif``, or ``a7.png`` and ``a8.png``."""
    stems = (PurePosixPath(entry.name) for entry in folder.iterdir())
    numbered = [
        re.fullmatch(r"(.*?)\d+", name.stem)
        for name in stems
        if name.suffix.lower() in IMAGE_SUFFIXES + TIFF_SUFFIXES and not _NO_VOLUME.search(name.stem)
    ]
    before = [match[1] for match in numbered if match]
    return len(before) > len(set(before))


def _holds_pixels(folder: Path) -> bool:
    """Whether a folder of ``volumes/`` is a volume: slices, or Zarr."""
    if any((folder / name).is_file() for name in (".zattrs", ".zgroup", ".zarray", "zarr.json")):
        return True
    return any(entry.name.lower().endswith(TIFF_SUFFIXES) for entry in folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    """Visible folders in a folder, in natural order; none where it is not there."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def absolute_source(text: str) -> str:
    """What names a volume, so that another process finds it from its own folder; addresses stay as they are."""
    path, fragment = strip_scheme(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return text
    return (SCHEME if fragment else "") + str(Path(path).expanduser().absolute())
