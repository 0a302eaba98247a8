"""Turns an output's path into a place that may be written: checked before any work, replaced when it is whole.

Only what an earlier ``predict`` wrote is replaced as a folder, and nothing is ever written into the volume itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, InputError, StorageError
from embedcache.files import PARTIAL_SUFFIX, fsync_folder, make_folder
from embedcache.remote import is_remote

FILE_ENDINGS = (".png", ".csv", ".tif", ".tiff")
"""Endings of outputs that are one file; a .zarr and a folder of pictures (no ending) are folders."""

ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")

PICTURES_NOTE = "prediction.json"
"""File of a folder of pictures that says how they were made, and lists them."""


def check_place(output: Path, *, sources: Sequence[str] = (), probabilities: bool) -> None:
    """Refuse a place that cannot or must not be written, before any work.

    Parameters
    ----------
    output : Path
        Absolute.
    sources : sequence of str
        Paths of the volume and store that are predicted.
    probabilities : bool
        Whether probabilities are to be written.

    Raises
    ------
    ConfigError
        For an ending that is not known.
    InputError
        For run lengths of probabilities, a file where a folder is meant and the other way round, a folder that
        no earlier predict wrote, and the volume itself.
    StorageError
        When nothing can be written there.
    """
    ending = output.suffix.lower()
    if ending not in ("", ".zarr", *FILE_ENDINGS):
        raise ConfigError(
            f"{output}: {output.suffix} is no ending that predict writes.",
            hint="Known are .zarr, .tif, .tiff, .png and .csv; a name without ending is a folder of PNGs.",
        )
    if ending == ".csv" and probabilities:
        raise InputError(
            f"{output}: run lengths hold masks, not probabilities.",
            hint="Leave probabilities out, or write a .zarr, .tif or folder.",
        )
    if any(_touches(output, source) for source in sources if source):
        raise InputError(
            f"{output} is what is predicted, or lies in it: nothing is written there.",
            hint="Choose another place.",
        )
    if ending in FILE_ENDINGS and output.is_dir():
        raise InputError(f"{output} is a folder, and a file of that name is to be written.")
    if ending not in FILE_ENDINGS and output.is_file():
        raise InputError(f"{output} is a file, and a folder of that name is to be written.")
    if ending not in FILE_ENDINGS:
        _require_ours(output)
    _require_writable(output)


def _touches(output: Path, source: str) -> bool:
    """Whether writing would change a volume or store: by being it, joining its images, or lying in its zarr."""
    if is_remote(source):
        return False
    original, place = Path(source).absolute().resolve(), output.resolve()
    beside_images = place.parent == original and output.suffix.lower() in FILE_ENDINGS
    in_zarr = original in place.parents and any((original / name).exists() for name in ZARR_FILES)
    return place == original or beside_images or in_zarr


def check_one_plane(output: Path, count: int) -> None:
    """Refuse a single PNG for several planes."""
    if output.suffix.lower() == ".png" and count != 1:
        raise InputError(
            f"{output}: one PNG holds one plane, and {count} planes are predicted.",
            hint="Give a folder (a name without ending), a .tif or a .zarr.",
        )


def _require_ours(folder: Path) -> None:
    """A folder that is not empty must be all of an earlier predict's making, as it is replaced as a whole."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if folder.suffix.lower() == ".zarr":
        attributes = _json(folder / "zarr.json").get("attributes", {})
        ours = "predicted" in attributes.get("embedcache", {}) if isinstance(attributes, dict) else False
        stranger = None if ours else "zarr.json"
    else:
        listed = {PICTURES_NOTE, *_json(folder / PICTURES_NOTE).get("files", [])}
        stranger = min((path.name for path in folder.iterdir() if path.name not in listed), default=None)
    if stranger is not None:
        raise InputError(
            f"{folder} exists and was not written by predict (it holds {stranger}): it is not replaced.",
            hint="Choose another name.",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_writable(output: Path) -> None:
    parent = next(folder for folder in output.parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"{output}: {parent} is a file, not a folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{output} cannot be written: no permission to write into {parent}.")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """An empty folder to write into, which gets the output's name when the block ends well; else it is removed."""
    partial = _cleared(output, PARTIAL_SUFFIX)
    make_folder(partial)
    try:
        yield partial
        old = _cleared(output, ".old" + PARTIAL_SUFFIX)
        if output.exists():
            output.rename(old)
        partial.rename(output)
        fsync_folder(output.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """The name of a file to write, which gets the output's name when the block ends well; else it is removed."""
    partial = output.with_name(output.name + PARTIAL_SUFFIX)
    make_folder(output.parent)
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(output)
        fsync_folder(output.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _cleared(output: Path, suffix: str) -> Path:
    """A name beside the output, free of what a killed run left there."""
    path = output.with_name(output.name + suffix)
    shutil.rmtree(path, ignore_errors=True)
    return path
