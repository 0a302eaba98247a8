"""Turns made-up pixels into PNG files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.files import write_file


def write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write a PNG unless the same bytes are there: an unchanged picture keeps its place in the store."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    if not path.is_file() or path.read_bytes() != stream.getvalue():
        write_file(path, stream.getvalue())
