"""Turns a seed into made-up scroll fragments, laid out as the ink contests lay them out.

A fragment is ``surface_volume/00.tif …``, sixteen-bit layers through the surface of the papyrus, ``ir.png``,
``mask.png`` (where there is papyrus) and ``inklabels.png``. In the X-ray ink is hardly denser than papyrus, and
only in the layers around the middle; in the infrared photograph it is black.

Equal seeds give equal pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from embedcache.demo.infrared import make_fragment
from embedcache.demo.pictures import write_png
from embedcache.files import write_file

AIR, PAPYRUS, INK = 9_000, 30_000, 6_000
"""Mean values of air and of papyrus, and what ink adds to it."""


@dataclass(frozen=True)
class SurfaceVolume:
    """A fragment's layers and what is known of them.

    Parameters
    ----------
    layers : uint16 (Z, h, w)
    ir : uint8 (h, w, 3)
    ink, papyrus : bool (h, w)
    """

    layers: npt.NDArray[np.uint16]
    ir: npt.NDArray[np.uint8]
    ink: npt.NDArray[np.bool_]
    papyrus: npt.NDArray[np.bool_]


def make_surface(planes: int, height: int, width: int, *, seed: int = 0) -> SurfaceVolume:
    """Make a fragment of so many layers of ``height × width`` px.

    Parameters
    ----------
    planes : int
        At least 3; ink lies in the middle third.
    height, width : int
        At least 64.
    seed : int
    """
    seen = make_fragment(height, width, seed=seed)
    rng = np.random.default_rng([seed, 1])
    fibres = _fibres(rng, height, width)
    soaked = ndimage.gaussian_filter(seen.ink.astype(np.float32), 0.7)
    layers = np.empty((planes, height, width), np.uint16)
    middle = (planes - 1) / 2
    for z in range(planes):
        depth = (z - middle) / max(1.0, planes / 2)  # -1 above the surface to 1 below it
        sheet = PAPYRUS * (1 - 0.35 * depth**2) + 1_800 * np.where(z % 2, fibres, fibres[::-1])
        sheet = sheet + (INK * soaked if abs(z - middle) <= planes / 6 else 0)
        grain = ndimage.gaussian_filter(rng.normal(size=(height, width)), 0.7) * 2_500
        layers[z] = np.clip(np.where(seen.parchment, sheet, AIR) + grain, 0, 65_535)
    return SurfaceVolume(layers, seen.image, seen.ink, seen.parchment)


def _fibres(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Streaks along the sheet, of mean 0 and deviation 1."""
    streaks = ndimage.gaussian_filter(rng.normal(size=(height, width)), (1, 12))
    return np.asarray((streaks - streaks.mean()) / streaks.std())


def write_fragment(
    folder: Path, *, planes: int = 65, side: int | tuple[int, int] = 256, seed: int = 0
) -> Path:
    """Write one fragment's folder; what is there already with the same pixels is left alone.

    Parameters
    ----------
    folder : Path
        Its name is the fragment's.
    planes : int
    side : int or (height, width)
    seed : int

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    height, width = (side, side) if isinstance(side, int) else side
    made = make_surface(planes, height, width, seed=seed)
    for number, layer in enumerate(made.layers):
        stream = BytesIO()
        tifffile.imwrite(stream, layer, metadata=None)
        path = folder / "surface_volume" / f"{number:02d}.tif"
        if not path.is_file() or path.read_bytes() != stream.getvalue():
            write_file(path, stream.getvalue())
    write_png(folder / "ir.png", made.ir)
    write_png(folder / "mask.png", made.papyrus.astype(np.uint8) * np.uint8(255))
    write_png(folder / "inklabels.png", made.ink.astype(np.uint8) * np.uint8(255))
    return folder
