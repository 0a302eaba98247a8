"""Turns numbers of bytes into what people read and write, and back: ``2.0 GiB``, ``2GiB``."""

from __future__ import annotations

import re

from embedcache.errors import ConfigError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def readable_bytes(count: float) -> str:
    """Bytes with a unit, as people read them: ``1.9 GiB``."""
    for unit in _UNITS:
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def parse_bytes(text: str | int, option: str) -> int:
    """A number of bytes as people write it: ``2GiB``, ``500 MB``, ``4g``, ``1048576``.

    ``MB`` counts by 1000 and ``MiB`` by 1024, as they are defined; a letter alone by 1024, as memory is counted.

    Raises
    ------
    ConfigError
        When it is none.
    """
    match = _WRITTEN.fullmatch(str(text).strip())
    if match is None:
        raise ConfigError(f"{option} {text}: expected bytes such as 2GiB, 500MB or 1048576.")
    number, letter, binary = match.groups()
    thousands = bool(letter) and not binary and str(text).strip().lower().endswith("b")
    return int(float(number) * (1000 if thousands else 1024) ** " kmgt".index(letter.lower() or " "))
