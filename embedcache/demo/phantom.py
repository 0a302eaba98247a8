"""Turns a seed into a made-up scroll: X-ray volume, ink labels and sheet labels, as scroll volumes are laid out.

The phantom is one sheet wound into a spiral, seen in cross-sections. Everything is computed in the sheet's own
coordinates, the way a scroll is unrolled: ``s`` along the sheet, ``z`` along the axis, ``d`` through its
thickness. Fibres run along ``s`` on one face and along ``z`` on the other; writing is drawn on the flat page
``(z, s)`` and lies on the inner face as a layer of crackled, metal-bearing ink, which is denser than the sheet.

Equal seeds and sizes give equal pixels.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from PIL import Image, ImageDraw
from scipy import ndimage

from embedcache.files import PARTIAL_SUFFIX, make_folder, storage_error

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

AIR, SHEET, INK = 38.0, 112.0, 205.0
"""Mean grey values of the three materials in the X-ray."""

INK_DEPTH = 4.5
"""Pixels that the ink reaches from the inner face into the sheet."""


@dataclass(frozen=True)
class ScrollPhantom:
    """A made-up scroll in memory.

    Parameters
    ----------
    volume : ndarray of uint8, (Z, Y, X)
        What the X-ray sees.
    ink, sheet : ndarray of bool, (Z, Y, X)
        Where there is ink, and where there is the sheet (ink included).
    seed : int
        What it was made from.
    """

    volume: Bytes
    ink: npt.NDArray[np.bool_]
    sheet: npt.NDArray[np.bool_]
    seed: int


def make_scroll(*, planes: int = 64, side: int = 256, seed: int = 0) -> ScrollPhantom:
    """Make a scroll of ``planes`` cross-sections of ``side × side`` px.

    Parameters
    ----------
    planes, side : int
        Size of the volume; ``side`` of at least 64 leaves room for two windings.
    seed : int
        Decides wobble, fibres, writing and noise.

    Returns
    -------
    ScrollPhantom
    """
    rng = np.random.default_rng(seed)
    sheet = _Sheet.draw(rng, planes, side)
    volume = np.empty((planes, side, side), np.uint8)
    ink = np.empty((planes, side, side), np.bool_)
    papyrus = np.empty((planes, side, side), np.bool_)
    for z in range(planes):
        grey, ink[z], papyrus[z] = sheet.section(z)
        noise = rng.normal(0.0, 1.0, (side, side)).astype(np.float32)
        grain = ndimage.gaussian_filter(noise, 0.7) * 12.0  # reconstruction noise is correlated
        volume[z] = np.clip(grey + grain, 0, 255).astype(np.uint8)
    return ScrollPhantom(volume, ink, papyrus, seed)


@dataclass(frozen=True)
class _Sheet:
    """The wound sheet: its shape, and pictures over its own coordinates ``(z, s)``."""

    side: int
    pitch: float
    inner: float
    turns: float
    phases: Floats
    page: npt.NDArray[np.bool_]
    crackle: npt.NDArray[np.bool_]
    along: Floats
    across: Floats
    thickness: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, planes: int, side: int) -> _Sheet:
        pitch, inner = 23.0, 0.055 * side + 4.0
        turns = (0.46 * side - inner) / pitch
        length = int(_arc(inner, pitch, turns)) + 2
        return cls(
            side=side,
            pitch=pitch,
            inner=inner,
            turns=turns,
            phases=rng.uniform(0, 2 * np.pi, 6).astype(np.float32),
            page=_write_page(rng, planes, length),
            crackle=_noise(rng, (planes, length), (0.8, 0.8)) > -0.75,
            along=_noise(rng, (planes, length), (0.6, 12.0)),
            across=_noise(rng, (planes, length), (12.0, 0.9)),
            thickness=(10.0 + 0.9 * _noise(rng, (planes, length), (10.0, 40.0))).astype(np.float32),
        )

    def section(self, z: int) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The cross-section at ``z``: mean grey values, ink, sheet."""
        turn, d = self._coordinates(z)
        inside = (turn > 0) & (turn < self.turns)
        s = np.clip(_arc(self.inner, self.pitch, np.clip(turn, 0, self.turns)), 0, self.page.shape[1] - 1)
        s = s.astype(np.int64)
        half = self.thickness[z, s] / 2
        sheet = inside & (np.abs(d) <= half)
        fibres = np.where(d < 0, self.along[z, s], self.across[z, s])
        depth = d + half  # px below the inner face, which is the written one
        written = sheet & self.page[z, s] & (depth < INK_DEPTH)
        edge = np.clip((half - np.abs(d)) + 0.5, 0, 1)  # partial volume: no sharp step in a real scan
        grey = AIR + np.where(inside, edge, 0) * (SHEET - AIR + 13.0 * fibres)
        solid = written & self.crackle[z, s]
        grey = np.where(solid, INK + 10.0 * fibres, np.where(written, 0.5 * (grey + INK), grey))
        return ndimage.gaussian_filter(grey.astype(np.float32), 0.55), written, sheet

    def _coordinates(self, z: int) -> tuple[Floats, Floats]:
        """Turn along the sheet and distance from its middle (px, outwards) of every pixel of a section."""
        p = self.phases
        drift = 0.012 * self.side
        centre_y = self.side / 2 + drift * np.sin(z / 23.0 + p[0])
        centre_x = self.side / 2 + drift * np.sin(z / 31.0 + p[1])
        y, x = np.mgrid[0 : self.side, 0 : self.side].astype(np.float32)
        dy, dx = (y - centre_y) * 1.06, x - centre_x  # a scroll is a little crushed
        angle = np.arctan2(dy, dx)
        radius = np.hypot(dy, dx)
        wobble = 3.2 * np.sin(2 * angle + p[2] + z / 40.0) + 1.7 * np.sin(5 * angle + p[3])
        wobble = wobble + 0.8 * np.sin(9 * angle + p[4] - z / 17.0)
        turn = (radius - self.inner - wobble * np.clip(radius / (0.3 * self.side), 0, 1)) / self.pitch
        part = angle / (2 * np.pi)
        winding = np.round(turn - part)
        return (winding + part).astype(np.float32), ((turn - part - winding) * self.pitch).astype(np.float32)


def _arc(inner: float, pitch: float, turn: Any) -> Any:
    """Length of the spiral ``radius = inner + pitch·turn`` from its start to ``turn``, in px."""
    return 2 * np.pi * (inner * turn + pitch * turn**2 / 2)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]) -> Floats:
    """Smooth noise of mean 0 and deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), sigma, mode="wrap")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), dtype=np.float32)


def _write_page(rng: np.random.Generator, planes: int, length: int) -> npt.NDArray[np.bool_]:
    """Lines of made-up letters on the flat page; lines run along the sheet, as in a real scroll."""
    page = Image.new("1", (length, planes), 0)
    draw = ImageDraw.Draw(page)
    height, leading, width = 13, 16, 24
    for top in range(1 - int(rng.integers(0, 6)), planes, leading):
        left = int(rng.integers(0, width))
        while left < length:
            if rng.random() < 0.8:
                draw_letter(draw, rng, left, top, width - 7, height, stroke=6)
            left += width + int(rng.integers(-1, 4))
    return np.asarray(page, dtype=np.bool_)


def draw_letter(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    left: float,
    top: float,
    width: float,
    height: float,
    *,
    stroke: int,
) -> None:
    """Draw one made-up letter of two to four strokes into a box."""
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5)]
    place = corners[int(rng.integers(len(corners)))]
    for _ in range(int(rng.integers(2, 5))):
        target = corners[int(rng.integers(len(corners)))]
        line = [(left + width * u, top + height * v) for u, v in (place, target)]
        draw.line(line, fill=1, width=stroke)
        place = target


def write_scroll(folder: Path, *, planes: int = 64, side: int = 256, seed: int = 0) -> dict[str, Path]:
    """Write a phantom as ``scroll.zarr``, ``ink.zarr`` and ``sheet.zarr`` unless they are there already.

    The layout is that of public scroll volumes: OME-Zarr 0.4, zarr v2, keys with ``/``, uint8, chunks of up to
    128³, a pyramid of two levels.

    Returns
    -------
    dict of str to Path
        ``volume``, ``ink``, ``sheet``.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    paths = {"volume": folder / "scroll.zarr", "ink": folder / "ink.zarr", "sheet": folder / "sheet.zarr"}
    recipe = {"planes": planes, "side": side, "seed": seed, "revision": 1}
    if all(_made_from(path) == recipe for path in paths.values()):
        return paths
    phantom = make_scroll(planes=planes, side=side, seed=seed)
    write_ome_zarr(paths["volume"], phantom.volume, recipe=recipe)
    write_ome_zarr(paths["ink"], phantom.ink.astype(np.uint8) * np.uint8(255), recipe=recipe, label=True)
    write_ome_zarr(paths["sheet"], phantom.sheet.astype(np.uint8) * np.uint8(255), recipe=recipe, label=True)
    return paths


def write_ome_zarr(path: Path, array: Bytes, *, recipe: dict[str, Any], label: bool = False) -> None:
    """Write an array as OME-Zarr 0.4 with a second level at half size; an older one of that name is replaced."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    half = array[::2, ::2, ::2] if label else _halve(array)
    try:
        make_folder(path.parent)
        shutil.rmtree(partial, ignore_errors=True)
        group = zarr.open_group(str(partial), mode="w", zarr_format=2)
        for name, level in (("0", array), ("1", half)):
            stored = group.create_array(
                name,
                shape=level.shape,
                dtype=level.dtype,
                chunks=tuple(min(128, size) for size in level.shape),
                chunk_key_encoding={"name": "v2", "separator": "/"},
                fill_value=0,
            )
            stored[...] = level
        group.attrs.update({"multiscales": [_multiscale(path.stem)], "phantom": recipe})
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except OSError as error:
        raise storage_error(error, path) from error


def _halve(array: Bytes) -> Bytes:
    """Mean of 2 × 2 × 2 voxels; an odd last plane, row or column is dropped."""
    z, y, x = (size // 2 for size in array.shape)
    blocks = array[: 2 * z, : 2 * y, : 2 * x].reshape(z, 2, y, 2, x, 2)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=np.uint8)


def _multiscale(name: str) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    levels = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [7.91 * 2**level] * 3}]}
        for level in (0, 1)
    ]
    return {"version": "0.4", "name": name, "axes": axes, "datasets": levels}


def _made_from(path: Path) -> Any:
    """The recipe that a phantom on disk was made from; None where there is none."""
    if not (path / ".zattrs").is_file():
        return None
    return zarr.open_group(str(path), mode="r").attrs.get("phantom")
