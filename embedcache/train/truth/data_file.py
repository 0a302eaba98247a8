"""Turns a TOML file into pairs of stores and labels: several fragments in one training, with their masks.

::

    [[data]]
    store = "embeddings/fragment1-vit_b-t1024-3fa9c1.zarr"  # paths are relative to this file
    labels = "fragment1/inklabels.png"
    supervision = "fragment1/mask.png"                      # optional; "none": not the one beside them
    name = "f1"                                             # optional; what --val store:f1 means
    [[data]]
    store = "embeddings/fragment2-vit_b-t1024-81c002.zarr"
    labels = "fragment2/inklabels.png"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError
from embedcache.remote import is_remote

FILE_LIMIT = 1 << 20
NONE = "none"
"""Instead of a mask: none, though one may lie beside the labels."""

_NEEDED = ("store", "labels")
_MASKS = ("supervision", "validation")
_PATHS = (*_NEEDED, *_MASKS, "boxes")
_KEYS = (*_PATHS, "name")


@dataclass(frozen=True)
class Pair:
    """One store of a training, and what belongs to it.

    Parameters
    ----------
    store, labels : str
        Absolute paths, or addresses.
    supervision, validation, boxes : str or None
        Absolute paths; a mask may also be ``none``.
    name : str
        What the store is called; empty where the file does not say.
    """

    store: str
    labels: str
    supervision: str | None = None
    validation: str | None = None
    boxes: str | None = None
    name: str = ""


def read_data_file(path: Path) -> tuple[Pair, ...]:
    """Read and check a data file; whether the files in it are there is seen when they are opened.

    Raises
    ------
    ConfigError
        When it is missing, no TOML, or says something that cannot be, with the number of the pair.
    """
    pairs = _tables(path)
    found = tuple(_pair(path, number, pair) for number, pair in enumerate(pairs, start=1))
    names = [pair.name for pair in found if pair.name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: two stores are called {twice!r}.", hint="Give each a name of its own.")
    return found


def _tables(path: Path) -> list[Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"The data file {path} cannot be read: {error.strerror}.") from error
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{path} is larger than {FILE_LIMIT:,} bytes; no data file is.")
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}.") from error
    for key in content:
        if key != "data":
            raise ConfigError(f"{path} has no key {key!r}; a data file is a list of [[data]].")
    pairs = content.get("data")
    if not isinstance(pairs, list) or not pairs:
        raise ConfigError(
            f"{path} lists no [[data]].",
            hint='Write [[data]], then store = "…" and labels = "…", once for each store.',
        )
    return pairs


def _pair(path: Path, number: int, values: object) -> Pair:
    where = f"{path}: [[data]] number {number}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is no table.")
    for key, value in values.items():
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(_KEYS)}."
            raise ConfigError(f"{where} has no key {key!r}; {hint}")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{where}: {key} is {value!r}; a path or name in quotes is expected.")
    for key in _NEEDED:
        if key not in values:
            raise ConfigError(f"{where} lacks {key}.")
    paths = {key: _absolute(path, key, values[key]) for key in _PATHS if key in values}
    return Pair(**paths, name=values.get("name", ""))


def _absolute(file: Path, key: str, value: str) -> str:
    if is_remote(value) or (key in _MASKS and value == NONE):
        return value
    return str(file.absolute().parent / Path(value).expanduser())
