"""Turns a store, a checkpoint or a run into its recipe.

A *recipe* is the part of the options that decides the embedding space and the grid: a plain JSON object kept in
every store's provenance and in every checkpoint, so that a new volume can be encoded in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from embedcache.errors import InputError
from embedcache.store import EmbeddingStore

RECIPE_FIELDS = (
    "model",
    "checkpoint",
    "tile",
    "overlap",
    "level",
    "channels",
    "window",
    "precision",
    "store_dtype",
)


def recipe_of(like: object) -> dict[str, Any]:
    """The recipe of a store, a checkpoint, a run folder, or of an object that has one.

    Raises
    ------
    InputError
        When ``like`` holds no recipe.
    """
    if isinstance(like, Mapping):
        return dict(like)
    if isinstance(like, EmbeddingStore):
        return dict(like.provenance["recipe"])
    recipe = getattr(like, "recipe", None)
    if isinstance(recipe, Mapping):
        return dict(recipe)
    path = Path(str(getattr(like, "checkpoint", like)))  # a Run names its best checkpoint
    if path.is_dir() and (path / "best.safetensors").is_file():
        path = path / "best.safetensors"
    if path.is_dir():
        return dict(EmbeddingStore.open(path).provenance["recipe"])
    return _recipe_of_checkpoint(path)


def _recipe_of_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        recipe = dict(json.loads(json.loads(metadata["embedcache"])["facts"])["recipe"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: neither a store nor a checkpoint of embedcache ({error}).",
            hint="--like takes a store (a .zarr folder), a run folder, or a run's best.safetensors.",
        ) from error
    return recipe
