"""Turns processes that measure into their seconds: each takes a turn in every round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from embedcache.bench.child import Child
from embedcache.errors import ConfigError, InputError
from embedcache.progress import Progress
from embedcache.sam.parts import SHAPES

Name = TypeVar("Name")

Turns = list[tuple[float, float]]
"""Seconds of each turn: on the clock, and of the processor."""


def take_turns(
    children: Mapping[Name, Child], rounds: int, progress: Progress, note: Callable[[Name, float], str]
) -> dict[Name, Turns]:
    """Let the children work, round by round; one that ends before says why in its ``not_run``.

    Parameters
    ----------
    children : dict of Child
        Started; those that could not be are passed over.
    rounds : int
        Turns of each.
    progress : Progress
        Where to report to.
    note : callable
        What is said of a turn, from its name and its seconds.
    """
    turns: dict[Name, Turns] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            took = child.turn() if child.not_run is None else None
            if took is not None:
                turns[name].append(took)
                progress.advance(note=note(name, took[0]))
    progress.finish()
    return turns


def check_wishes(command: str, model: str, **numbers: int | None) -> None:
    """Refuse what no bench can do.

    Raises
    ------
    InputError
        When it is no model of SAM's.
    ConfigError
        When a number is given that is not at least 1.
    """
    if model not in SHAPES:
        raise InputError(f"{command} knows no model {model!r}.", hint=f"Known: {', '.join(SHAPES)}.")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {number}: must be at least 1.")
