"""Turns a tile's labels into the objects that are asked for: the whole mask, its components, or its ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError
from embedcache.train.truth.task import Task

OBJECTS = ("whole", "components", "ids")

_WITHOUT_PLACE = ("none", "mask")
"""Prompts that are the same for all objects of a tile."""


def default_objects(task: Task, prompts: str) -> str:
    """The objects of a task: ids for instances whose prompts tell them apart, else the whole mask."""
    return "ids" if task == "instances" and prompts not in _WITHOUT_PLACE else "whole"


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
    if objects != "whole" and prompts in _WITHOUT_PLACE:
        raise ConfigError(
            f"--prompts {prompts} with --objects {objects}: without a prompt of its own nothing says which object "
            "is meant.",
            hint="Use --objects whole, or --prompts box, points or iterative.",
        )
    return objects


def shown_objects(targets: npt.NDArray[np.uint8], weight: npt.NDArray[np.uint8]) -> list[int]:
    """Which objects are asked: those with a cell of their own that counts; else the last, which is the whole.

    Parameters
    ----------
    targets : uint8 (P + 1, 256, 256)
        The last is everything positive.
    weight : uint8 (256, 256)
    """
    seen = (targets[:-1] & weight).any(axis=(1, 2))
    return [int(index) for index in np.flatnonzero(seen)] or [len(targets) - 1]
