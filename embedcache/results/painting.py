"""Turns a table of run lengths back into masks: one PNG for each of its lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from embedcache.errors import InputError
from embedcache.files import write_file
from embedcache.results.masks_out import png_bytes
from embedcache.results.output_place import PICTURES_NOTE, check_place, whole_folder
from embedcache.results.rle import MOST_PIXELS, decode_runs
from embedcache.results.submission import read_submission
from embedcache.volume import open_volume

Size = tuple[int, int]


def paint_submission(table: str | Path, output: str | Path, sizes: Mapping[str | None, Size]) -> list[Path]:
    """Paint the masks of a table into a folder.

    Parameters
    ----------
    table : path
        A csv, ``Id,Predicted``.
    output : path
        A folder, one ``ID.png`` (uint8, 0 and 255) for each line; replaced when it is of an earlier painting.
    sizes : mapping
        Height and width by ``Id``; None: of all others.

    Returns
    -------
    list of Path
        The pictures, in the order of the table.

    Raises
    ------
    InputError
        When a size is missing, run lengths do not fit it, or an ``Id`` cannot be a file's name.
    StorageError
        When the disk refuses.
    """
    folder = Path(output).absolute()
    if folder.suffix:
        raise InputError(f"{folder}: masks are painted into a folder, a name without ending.")
    cells = read_submission(table)
    if not cells:
        raise InputError(f"{table} holds no mask.")
    unknown = sorted(name for name in sizes if name is not None and name not in cells)
    if unknown:
        raise InputError(f"{table} holds no Id {unknown[0]}; it holds {', '.join(cells)}.")
    for name in cells:
        _check_name(name, table)
        if name not in sizes and None not in sizes:
            raise InputError(
                f"{table}, Id {name}: the size of its plane is not in the table.",
                hint=f"Give it: --size {name}=HEIGHTxWIDTH, or --like {name}=FILE.",
            )
    check_place(folder, sources=[str(table)], probabilities=False)
    files = [f"{name}.png" for name in cells]
    with whole_folder(folder) as partial:
        for (name, cell), file in zip(cells.items(), files, strict=True):
            size = sizes[name] if name in sizes else sizes[None]
            mask = decode_runs(cell, size, where=f"{table}, Id {name}")
            write_file(partial / file, png_bytes(mask.view(np.uint8) * np.uint8(255)))
        note = {"table": str(table), "predicted": list(cells), "files": files}
        write_file(partial / PICTURES_NOTE, json.dumps(note, indent=1).encode())
    return [folder / file for file in files]


def _check_name(name: str, table: str | Path) -> None:
    if not name.isprintable() or any(sign in name for sign in '/\\:*?"<>|') or name.startswith("."):
        raise InputError(f"{table}, Id {name!r} cannot be the name of a file.")


def read_size(text: str) -> Size:
    """Height and width of ``HEIGHTxWIDTH``.

    Raises
    ------
    InputError
        For anything else, and for more pixels than a plane has.
    """
    words = text.lower().replace("×", "x").split("x")
    if len(words) != 2 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise InputError(f"--size {text!r}: expected is HEIGHTxWIDTH, as 8181x6330.")
    height, width = (int(word[:12]) for word in words)
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise InputError(f"--size {text}: no plane has {height} × {width} pixels.")
    return height, width


def size_like(path: str | Path) -> Size:
    """Height and width of the planes of a file; no pixel is read.

    Raises
    ------
    InputError
        When it does not open, or its images differ in size.
    """
    with closing(open_volume(path)) as volume:
        found = {volume.plane_size(plane) for plane in range(1 if volume.uniform else volume.n_planes)}
    if len(found) != 1:
        raise InputError(f"--like {path}: its images differ in size.", hint="Name one of them.")
    return found.pop()
