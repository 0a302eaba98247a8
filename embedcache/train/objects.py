"""Turns a tile's labels into the objects that are asked for: the whole mask, its components, or its ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from embedcache.errors import ConfigError
from embedcache.train.task import Task

OBJECTS = ("whole", "components", "ids")

MIN_PIXELS = 16
"""Objects smaller than this within a tile (cut off by its edge, or specks) are not asked for."""


def default_objects(task: Task, prompts: str) -> str:
    """The objects of a task: ids for prompted instances, else the whole mask."""
    return "ids" if task == "instances" and prompts != "none" else "whole"


def check_objects(objects: str, task: Task, prompts: str) -> str:
    """Return ``objects`` when it makes sense for the task and prompts.

    Raises
    ------
    ConfigError
        For an unknown word, ids of labels without ids, or several objects that no prompt tells apart.
    """
    if objects not in OBJECTS:
        raise ConfigError(f"--objects is {objects!r}; it must be one of {', '.join(OBJECTS)}.")
    if objects == "ids" and task != "instances":
        raise ConfigError(
            "--objects ids needs instance labels, but these are semantic.",
            hint="Use --objects components, or --task instances when the values are ids.",
        )
    if objects != "whole" and prompts == "none":
        raise ConfigError(
            f"--prompts none with --objects {objects}: without a prompt nothing says which object is meant.",
            hint="Use --objects whole, or --prompts box, points or iterative.",
        )
    return objects


def find_objects(
    labels: npt.NDArray[Any],
    supervised: npt.NDArray[np.bool_],
    objects: str,
    *,
    limit: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Masks of a tile's objects.

    Parameters
    ----------
    labels : bool or int32 (height, width)
        The tile's labels.
    supervised : bool (height, width)
        Where they count; what lies outside is not part of an object.
    objects : "whole", "components" or "ids"
    limit : int
        At most this many, drawn at random where there are more.
    rng : Generator
        Draws them.

    Returns
    -------
    bool (P, height, width)
        ``whole`` always gives one, possibly empty; the others give none for an empty tile.
    """
    inside = np.where(supervised, labels, 0)
    if objects == "whole":
        return np.asarray(inside > 0)[None]
    numbered = ndimage.label(inside > 0)[0] if objects == "components" else inside
    ids, sizes = np.unique(numbered[numbered > 0], return_counts=True)
    ids = ids[sizes >= MIN_PIXELS]
    if len(ids) > limit:
        ids = np.sort(rng.choice(ids, size=limit, replace=False))
    return np.asarray(numbered[None] == ids[:, None, None])
