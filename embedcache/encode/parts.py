"""Turns ``--num-parts`` and ``--part-id``, or a SLURM array's variables, into the shards that one process encodes.

A part takes a run of consecutive shards. Which ones follows from the selection alone, never from what is done
already, so all parts may start at once, late or again, and no two of them ever take the same shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One of several processes that fill a store together.

    Parameters
    ----------
    number : int
        From 0.
    of : int
        How many there are.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if self.of < 1:
            raise ConfigError(f"--num-parts {self.of}: must be at least 1.")
        if not 0 <= self.number < self.of:
            raise ConfigError(f"--part-id {self.number}: parts count from 0 to {self.of - 1}.")

    def shards(self, selected: npt.NDArray[np.bool_], shard_tiles: int) -> range:
        """The shards of this part: parts hold equally many shards with selected tiles."""
        holding = np.unique(np.flatnonzero(selected) // shard_tiles)
        first, end = (len(holding) * number // self.of for number in (self.number, self.number + 1))
        if first == end:
            return range(0)
        return range(int(holding[first]), int(holding[end - 1]) + 1)

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"


def part_of(num_parts: int | None, part_id: int | None) -> Part | None:
    """The part that the options name; None for the whole.

    Raises
    ------
    ConfigError
        When one of the two is missing, or they do not fit together.
    """
    if num_parts is None and part_id is None:
        return None
    if num_parts is None or part_id is None:
        given, lacking = ("--num-parts", "--part-id") if part_id is None else ("--part-id", "--num-parts")
        raise ConfigError(
            f"{given} was given without {lacking}.", hint="For example --num-parts 4 --part-id 0 (to 3)."
        )
    return Part(part_id, num_parts)


def part_of_array_job(environment: Mapping[str, str]) -> Part | None:
    """The part that a task of a SLURM array is: its place among the task ids; None outside an array.

    Raises
    ------
    ConfigError
        When the ids are not evenly spaced, so that a task cannot know its place.
    """
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    texts = [environment.get(f"SLURM_ARRAY_TASK_{name}") for name in names]
    if texts[0] is None or texts[1] is None:
        return None
    try:
        number, count, first = (int(text) for text in (texts[0], texts[1], texts[2] or "0"))
        step = int(texts[4] or "1")
        last = first + (count - 1) * step if texts[3] is None else int(texts[3])
    except ValueError:
        raise _uneven(environment) from None
    if (
        step < 1
        or last != first + (count - 1) * step
        or (number - first) % step
        or not first <= number <= last
    ):
        raise _uneven(environment)
    return Part((number - first) // step, count)


def _uneven(environment: Mapping[str, str]) -> ConfigError:
    found = {name: value for name, value in environment.items() if name.startswith("SLURM_ARRAY_TASK_")}
    shown = ", ".join(f"{name}={value}" for name, value in sorted(found.items()))
    return ConfigError(
        f"This SLURM array's task ids are not evenly spaced, so that this task's part is not known ({shown}).",
        hint="Give --num-parts N --part-id I, or submit the array as 0-N; --num-parts 1 --part-id 0 encodes all.",
    )
