"""What becomes of an injected fault: found and named, survived without harm, silent, or something lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

PROBLEMS_KEPT = 20


class SilentError(AssertionError):
    """A wrong result was given as if it were right."""


class LostError(AssertionError):
    """Something that was acknowledged is gone."""


@dataclass
class Outcome:
    """Counts over the trials of one row.

    Parameters
    ----------
    detected : int
        The fault was found and named.
    survived : int
        It did no harm: everything is as if it had not been.
    silent, lost : int
        A wrong result without a word; acknowledged work that is gone. Both must stay 0.
    failed : int
        Anything else that was promised and did not hold: a wrong exit code, a traceback, a hanging command.
    figures : dict of str to float
        What was measured beside; the largest value of all trials is kept, of ``n …`` the sum.
    problems : list of str
        The first silent, lost and failed trials in words, with their seeds.
    """

    trials: int = 0
    detected: int = 0
    survived: int = 0
    silent: int = 0
    lost: int = 0
    failed: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there were trials, and all of them were detected or survived."""
        return self.trials > 0 and not (self.silent or self.lost or self.failed)

    def add(self, other: Outcome) -> None:
        """Count another one's trials in."""
        for name in ("trials", "detected", "survived", "silent", "lost", "failed", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, value in other.figures.items():
            known = self.figures.get(name, 0.0)
            self.figures[name] = known + value if name.startswith("n ") else max(known, value)
        self.problems = (self.problems + other.problems)[:PROBLEMS_KEPT]

    def problem(self, kind: str, words: str) -> None:
        """Count one trial that went wrong."""
        self.trials += 1
        setattr(self, kind, getattr(self, kind) + 1)
        self.problems.append(f"{kind}: {words}")


def detected(**figures: float) -> Outcome:
    """One trial whose fault was found and named."""
    return Outcome(trials=1, detected=1, figures=_named(figures))


def survived(**figures: float) -> Outcome:
    """One trial that did no harm."""
    return Outcome(trials=1, survived=1, figures=_named(figures))


def _named(figures: dict[str, float]) -> dict[str, float]:
    return {name.replace("_", " "): float(value) for name, value in figures.items()}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Parameters
    ----------
    name : str
        Of ``--only``.
    fault : str
        What is done to the command or the store.
    promise : str
        What has to hold.
    trial : callable
        ``(stage, case, rng) -> Outcome``; raises :class:`SilentError`, :class:`LostError` or AssertionError.
    trials : int
        How many at the default number of rounds; 0 for rows that go through all their ``cases``.
    cases : callable, optional
        ``(stage) -> sequence``: what is gone through; a random row's cases are just numbers.
    prepare : callable, optional
        ``(stage) -> None``: makes what all trials of the row share.
    needs : callable, optional
        Why the row cannot run here, or None.
    weight : float
        Seconds that it takes, roughly; long rows are begun first.
    """

    name: str
    fault: str
    promise: str
    trial: Callable[[Any, Any, Random], Outcome]
    trials: int = 0
    cases: Callable[[Any], Sequence[Any]] | None = None
    prepare: Callable[[Any], None] | None = None
    needs: Callable[[], str | None] | None = None
    weight: float = 5.0


@dataclass
class Place:
    """A folder of a trial's own, emptied before the next one."""

    folder: Path
