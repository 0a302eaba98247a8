"""Turns a folder, here or elsewhere, into files that are read by name and never listed: a ``Tree``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import zarr

from embedcache.errors import VolumeError
from embedcache.volume.volume import way_out

ARRAY_FILES = (".zarray", "zarr.json")
GROUP_FILES = (".zgroup", ".zattrs", "zarr.json")


class Tree(Protocol):
    """A folder that holds Zarr metadata."""

    @property
    def name(self) -> str:
        """The folder's path or address as it may be shown."""

    @property
    def last(self) -> str:
        """What it is called in the folder around it."""

    @property
    def parent(self) -> Tree | None:
        """The folder around it."""

    def child(self, path: str) -> Tree:
        """A folder below it."""

    def read(self, name: str) -> bytes | None:
        """A file in it; None where there is none."""

    def expect(self, names: Sequence[str]) -> None:
        """Say which files are going to be read, where reading many at once is faster."""

    def array(self, filename: str, metadata: bytes) -> Any:
        """The Zarr array in it, whose metadata was read already."""


class LocalTree:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name, self.last = str(folder), folder.name

    @property
    def parent(self) -> LocalTree:
        """See :class:`Tree`."""
        return LocalTree(self._folder.parent)

    def child(self, path: str) -> LocalTree:
        """See :class:`Tree`."""
        return LocalTree(self._folder / path)

    def read(self, name: str) -> bytes | None:
        """See :class:`Tree`."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def expect(self, names: Sequence[str]) -> None:
        """See :class:`Tree`; nothing is faster here."""

    def array(self, filename: str, metadata: bytes) -> Any:
        """See :class:`Tree`."""
        return zarr.open_array(str(self._folder), mode="r")


def read_json(tree: Tree, name: str) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    try:
        body = tree.read(name)
        value = None if body is None else json.loads(body)
    except (OSError, ValueError) as error:
        raise VolumeError(
            f"{tree.name}/{name} is not readable as JSON ({error}).",
            hint=way_out(error, "Fetch the file again."),
        ) from error
    return value if isinstance(value, dict) else None if body is None else {}


def array_metadata(tree: Tree) -> tuple[str, bytes] | None:
    """Name and bytes of the metadata of the Zarr array in a folder; None when there is no array."""
    body = tree.read(".zarray")
    if body is not None:
        return ".zarray", body
    body = tree.read("zarr.json")
    if body is not None and (read_json(tree, "zarr.json") or {}).get("node_type") == "array":
        return "zarr.json", body
    return None


def has_group(tree: Tree) -> bool:
    """Whether a folder is a Zarr group."""
    return any(tree.read(name) is not None for name in GROUP_FILES)


def attributes_of(tree: Tree) -> dict[str, Any]:
    """The attributes of a group."""
    group = read_json(tree, "zarr.json")
    attributes = read_json(tree, ".zattrs") if group is None else group.get("attributes")
    return attributes if isinstance(attributes, dict) else {}
