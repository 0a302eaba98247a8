"""Turns a folder into the list of its image files, in the order in which people count."""

from __future__ import annotations

import re
from pathlib import Path


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which ``2.tif`` comes before ``10.tif``."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces if piece], name


def files_with(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Visible files of a folder with one of the endings, in natural order."""
    names = [
        entry
        for entry in folder.iterdir()
        if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and entry.is_file()
    ]
    return sorted(names, key=lambda entry: natural_key(entry.name))
