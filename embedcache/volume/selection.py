"""Turns ``--z-range``, ``--bbox`` and ``--mask`` into the tiles that are wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import VolumeError
from embedcache.volume.mask import open_mask
from embedcache.volume.tuples import draw_planes, is_random, parse_random
from embedcache.volume.volume import Volume


@dataclass(frozen=True)
class Selection:
    """Which part of a volume is wanted; the parts given must all hold.

    Parameters
    ----------
    z_range : str, optional
        ``"A:B"`` or ``"A:B:STEP"``: planes from A up to, not including, B; single planes; several of these with
        commas; or ``"random:N[:SEED]"``.
    bbox : str, optional
        ``"Y0:Y1,X0:X1"`` in volume px, ends excluded; every tile that touches it is wanted.
    mask : str, optional
        Path of an image or volume; every tile that touches a value above 0 is wanted.
    """

    z_range: str | None = None
    bbox: str | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.z_range is not None and is_random(self.z_range):
            parse_random(self.z_range, "--z-range")
        elif self.z_range is not None:
            _parse_z_range(self.z_range)
        if self.bbox is not None:
            _parse_bbox(self.bbox)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"z_range": self.z_range, "bbox": self.bbox, "mask": self.mask}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """From :meth:`to_dict`."""
        return cls(values.get("z_range"), values.get("bbox"), values.get("mask"))


def select(table: npt.NDArray[np.int64], selection: Selection, *, volume: Volume) -> npt.NDArray[np.bool_]:
    """Which base tiles of a table touch the selection; further views of them are not looked at.

    Parameters
    ----------
    table : ndarray (N, 5) or (N, 6)
        Tiles by number, as :meth:`TileGrid.table` makes it, or as a store that has views keeps it.
    selection : Selection
        What is wanted.
    volume : Volume
        The volume that the table belongs to.

    Returns
    -------
    ndarray (N,) of bool
        False wherever a number has no tile, or one in another view than 0.

    Raises
    ------
    VolumeError
        When the selection lies outside the volume, or the mask does not fit it.
    """
    wanted: npt.NDArray[np.bool_] = table[:, 0] >= 0
    if table.shape[1] > 5:
        wanted &= table[:, 5] == 0
        table = table[:, :5]
    planes = int(table[:, 0].max()) + 1 if wanted.any() else 0
    if selection.z_range is not None:
        wanted &= _planes_wanted(selection.z_range, planes, volume)[table[:, 0]]
    if selection.bbox is not None:
        y0, y1, x0, x1 = _inside(selection.bbox, table, volume)
        wanted &= (table[:, 1] < y1) & (table[:, 1] + table[:, 3] > y0)
        wanted &= (table[:, 2] < x1) & (table[:, 2] + table[:, 4] > x0)
    if selection.mask is not None:
        wanted = _touching_mask(selection.mask, table, wanted, planes, volume)
    return wanted


def _parse_z_range(text: str) -> list[tuple[int, int | None, int]]:
    """Ranges as first, end and step; a single plane is a range of one."""
    found: list[tuple[int, int | None, int]] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d*):(\d*)(?::(\d+))?", part)
        if match is None and not part.isdecimal():
            raise VolumeError(
                f"--z-range {text}: expected FIRST:END or FIRST:END:STEP, such as 100:200 or 0:65:2, several of "
                "them with commas, or random:N[:SEED]."
            )
        if match is None:
            found.append((int(part), int(part) + 1, 1))
            continue
        first, end, step = int(match[1] or 0), int(match[2]) if match[2] else None, int(match[3] or 1)
        if step < 1 or (end is not None and end <= first):
            raise VolumeError(
                f"--z-range {part} holds no plane: the end is not included, and the step is at least 1."
            )
        found.append((first, end, step))
    return found


def _parse_bbox(text: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", text.replace(" ", ""))
    if match is None:
        raise VolumeError(f"--bbox {text}: expected Y0:Y1,X0:X1 in pixels, such as 0:2048,1024:4096.")
    y0, y1, x0, x1 = (int(number) for number in match.groups())
    if y0 >= y1 or x0 >= x1:
        raise VolumeError(f"--bbox {text} is empty: each first number must be below the second.")
    return y0, y1, x0, x1


def _planes_wanted(text: str, planes: int, volume: Volume) -> npt.NDArray[np.bool_]:
    wanted = np.zeros(max(planes, 1), np.bool_)
    if is_random(text):
        wanted[list(draw_planes(planes, *parse_random(text, "--z-range")))] = True
        return wanted
    for first, end, step in _parse_z_range(text):
        last = planes if end is None else end
        if first >= planes or last > planes:
            raise VolumeError(
                f"--z-range {text} lies outside {volume.source}, which has planes 0 to {planes - 1}."
            )
        wanted[first:last:step] = True
    return wanted


def _inside(text: str, table: npt.NDArray[np.int64], volume: Volume) -> tuple[int, int, int, int]:
    y0, y1, x0, x1 = _parse_bbox(text)
    height = int((table[:, 1] + table[:, 3]).max(initial=0))
    width = int((table[:, 2] + table[:, 4]).max(initial=0))
    if y1 > height or x1 > width:
        most = "" if volume.uniform else " at most"
        raise VolumeError(
            f"--bbox {text} lies outside {volume.source}, "
            f"whose planes are{most} {height} × {width} pixels (0:{height},0:{width})."
        )
    return y0, y1, x0, x1


def _touching_mask(
    path: str, table: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_], planes: int, volume: Volume
) -> npt.NDArray[np.bool_]:
    result = wanted.copy()
    numbers = np.flatnonzero(wanted)
    with open_mask(path, volume, planes) as mask:
        boxes = table[numbers].copy()
        if volume.uniform:
            # Tiles that see the same pixels of the mask are asked about once, as columns do under a flat mask.
            boxes[:, 0] = np.array([mask.plane_of(plane) for plane in range(planes)], np.int64)[boxes[:, 0]]
        lengths = boxes.max(axis=0, initial=0)[:3] + 1
        _, first, group = np.unique(
            np.ravel_multi_index(tuple(boxes[:, :3].T), tuple(lengths)),
            return_index=True,
            return_inverse=True,
        )
        touched = np.zeros(len(first), np.bool_)
        for index, (plane, *box) in enumerate(table[numbers[first]].tolist()):
            touched[index] = mask.touches(plane, *box)
        result[numbers] = touched[group]
    return result
