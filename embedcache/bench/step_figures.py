"""Turns what the processes of a bench of training told into its table, its ratios and its JSON object."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepFigures:
    """What was measured of one way in one case.

    Parameters
    ----------
    case, way, label : str
        Which one.
    seconds, cpu_seconds : tuple of float
        Of each step: on the clock; and of the processor, which other work disturbs less.
    losses : tuple of float
        Of each step, the first included, which is not timed.
    saved_bytes : int
        What forward passes keep for the backward pass at most at a time.
    peak_memory_bytes : int
        The most that its process (on a GPU: torch) held while it trained.
    start_seconds : float
        Until the first step was taken.
    threads : int
        CPU threads that torch had.
    """

    case: str
    way: str
    label: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    saved_bytes: int
    peak_memory_bytes: int
    start_seconds: float
    threads: int

    @property
    def median(self) -> float:
        """Seconds of a step: the median of the turns."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class TrainBench:
    """What was measured of all ways in all cases in one run.

    Parameters
    ----------
    model, checkpoint, device : str
        Of what, where.
    rounds : int
        Steps that each way took, beside its first.
    figures : tuple of StepFigures
        Of those that ran.
    not_run : dict of str to str
        The others, and why.
    waits : dict of str to float
        Share of its steps that a real training on made-up embeddings waited for data, by where they came from:
        ``disk`` (read each time; from the page cache) and ``ram`` or ``gpu`` (kept after their first read).
        Empty: not measured.
    machine : dict
        This machine, versions, date.
    """

    model: str
    checkpoint: str
    device: str
    rounds: int
    figures: tuple[StepFigures, ...]
    not_run: dict[str, str]
    waits: dict[str, float]
    machine: dict[str, object]

    def of(self, case: str, way: str) -> StepFigures | None:
        """The figures of one way in one case, where it ran."""
        return next((one for one in self.figures if (one.case, one.way) == (case, way)), None)

    @property
    def ratios(self) -> dict[str, float]:
        """Per case and other way, as ``1x16 stock_cached``: how many times faster ours on cached embeddings is."""
        found = {}
        for one in self.figures:
            ours = self.of(one.case, "cached")
            if ours is not None and one.way != "cached":
                found[f"{one.case} {one.way}"] = one.median / ours.median
        return found

    @property
    def wait(self) -> float | None:
        """The share waited where each embedding is read each time; None: not measured."""
        return self.waits.get("disk")

    @property
    def loss_difference(self) -> float | None:
        """Relative difference of the last loss, cached against stock with its encoder in the loop."""
        for case in dict.fromkeys(one.case for one in self.figures):
            stock, ours = self.of(case, "stock"), self.of(case, "cached")
            if stock is not None and ours is not None:
                return abs(ours.losses[-1] - stock.losses[-1]) / abs(stock.losses[-1])
        return None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache bench train --json``."""
        return {
            "ratio": next((value for name, value in self.ratios.items() if name.endswith(" stock")), None),
            "ratios": self.ratios,
            "seconds": self._by_case("median"),
            "saved_bytes": self._by_case("saved_bytes"),
            "peak_memory_bytes": self._by_case("peak_memory_bytes"),
            "wait": self.wait,
            "waits": self.waits,
            "loss_difference": self.loss_difference,
            "steps": [asdict(one) for one in self.figures],
            "not_run": self.not_run,
            "model": self.model,
            "checkpoint": self.checkpoint,
            "device": self.device,
            "rounds": self.rounds,
            "machine": self.machine,
        }

    def _by_case(self, what: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for one in self.figures:
            found.setdefault(one.case, {})[one.way] = getattr(one, what)
        return found
