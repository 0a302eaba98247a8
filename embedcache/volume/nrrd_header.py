"""Turns the fields of a NRRD header into the type of its pixels, the names of its axes and its voxel size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_TYPES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64",
              "int64_t"),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}  # fmt: skip
_COLOURS = (
    "3-color",
    "rgb-color",
    "3-vector",
    "vector",
    "3-gradient",
    "3-normal",
    "covariant-vector",
    "list",
)
_MICROMETRES = {"um": 1.0, "µm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometers": 1.0,
                "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}  # fmt: skip


def dtype_of(header: Mapping[str, Any]) -> np.dtype[Any] | None:
    """Type of the stored pixels; None where they are none, as of type ``block``."""
    name = next((known for known, names in _TYPES.items() if header["type"] in names), None)
    return (
        None if name is None else np.dtype(name).newbyteorder(">" if header.get("endian") == "big" else "<")
    )


def axis_names(header: Mapping[str, Any]) -> list[str]:
    """Names of the dimensions, fastest first; one of length 3 that is a colour or a vector is ``c``."""
    sizes, kinds = header["sizes"], [str(kind).lower() for kind in header.get("kinds", [])]
    kinds += [""] * (len(sizes) - len(kinds))
    room = iter("xyzt" + "uvw" * len(sizes))
    names, coloured = [], False
    for size, kind in zip(sizes, kinds, strict=False):
        colour = not coloured and int(size) == 3 and kind in _COLOURS
        coloured = coloured or colour
        names.append("c" if colour else next(room))
    return names


def voxel_size(header: Mapping[str, Any], names: list[str]) -> tuple[float, float, float] | None:
    """Micrometres per voxel, z y x, where spacings and units of all three are given."""
    if header.get("spacings") is not None:
        lengths, units = header["spacings"], header.get("units", [])
    elif header.get("space directions") is not None:
        lengths = [
            float(np.linalg.norm(row)) if row is not None else math.nan for row in header["space directions"]
        ]
        units = [*header.get("space units", [])[:1]] * len(names)
    else:
        return None
    sizes = {
        name: float(length) * _MICROMETRES.get(str(unit).strip().lower(), math.nan)
        for name, length, unit in zip(names, lengths, units, strict=False)
    }
    z, y, x = (sizes.get(name, math.nan) for name in "zyx")
    return (z, y, x) if all(math.isfinite(size) and size > 0 for size in (z, y, x)) else None
