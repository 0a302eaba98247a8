"""Turns a model into an ``EncoderBench``: seconds, error and memory of every way to run its image encoder.

Each variant has a process of its own, so that its memory is its own and nothing is shared; they take turns, round
by round, so that what else the machine does meanwhile falls on all of them alike.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.bench.child import Child
from embedcache.bench.machine import machine
from embedcache.bench.process import Settings
from embedcache.bench.turns import check_wishes, take_turns
from embedcache.bench.variants import REFERENCE, Variant, chosen, why_not_here
from embedcache.errors import InputError
from embedcache.progress import Progress
from embedcache.sam.encoder import resolve_device

CUDA_BATCH = 8
BEST_OF_OURS = ("ours_bf16_compiled", "ours_bf16", "ours_fp32")
"""Whose time the one ratio is of: the first that ran, as a long ``encode`` would choose."""


@dataclass(frozen=True)
class EncoderFigures:
    """What was measured of one variant.

    Parameters
    ----------
    name, label : str
        Which one.
    seconds, cpu_seconds : tuple of float
        Seconds per image, of each round: on the clock; and of the processor, which other work disturbs less.
    start_seconds : float
        From its weights on disk to the first result, compiling included.
    error : dict or None
        ``relative_l2`` and ``largest`` difference from stock in float32; None when that did not run.
    start_memory_bytes, peak_memory_bytes : int
        The most that its process (on a GPU: torch) held: until the encoder was built, its weights still beside it
        as they came from the file; and from then on, while it encoded.
    numerics : dict
        What ours decided.
    threads : int
        CPU threads that torch had.
    """

    name: str
    label: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    start_seconds: float
    start_memory_bytes: int
    error: dict[str, float] | None
    peak_memory_bytes: int | None
    numerics: dict[str, Any]
    threads: int

    @property
    def median(self) -> float:
        """Seconds per image: the median of the rounds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class EncoderBench:
    """What was measured of all variants in one run.

    Parameters
    ----------
    model, checkpoint, device : str
        Of what, where.
    batch, rounds : int
        Images in a call; turns that each variant took.
    figures : tuple of EncoderFigures
        Of those that ran.
    not_run : dict of str to str
        The others, and why.
    machine : dict
        This machine, versions, date.
    """

    model: str
    checkpoint: str
    device: str
    batch: int
    rounds: int
    figures: tuple[EncoderFigures, ...]
    not_run: dict[str, str]
    machine: dict[str, object]

    @property
    def ratios(self) -> dict[str, float]:
        """How many times faster than stock in float32 each one is; empty when that did not run."""
        medians = {figures.name: figures.median for figures in self.figures}
        stock = medians.get(REFERENCE)
        return {} if stock is None else {name: stock / value for name, value in medians.items()}

    @property
    def ratio_of(self) -> str | None:
        """Whose ratio is the one that counts."""
        return next((name for name in BEST_OF_OURS if name in self.ratios), None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache bench encode --json``."""
        return {
            "ratio": None if self.ratio_of is None else self.ratios[self.ratio_of],
            "ratio_of": self.ratio_of,
            "ratios": self.ratios,
            "seconds": {figures.name: figures.median for figures in self.figures},
            "cpu_seconds": {one.name: statistics.median(one.cpu_seconds) for one in self.figures},
            "variants": [asdict(figures) for figures in self.figures],
            "not_run": self.not_run,
            "model": self.model,
            "checkpoint": self.checkpoint,
            "device": self.device,
            "batch": self.batch,
            "rounds": self.rounds,
            "machine": self.machine,
        }


def bench_encoders(
    progress: Progress,
    *,
    model: str = "vit_b",
    checkpoint: str = "random:0",
    rounds: int = 3,
    threads: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    only: tuple[str, ...] = (),
    profile: str | None = None,
) -> EncoderBench:
    """Let all variants that are here encode the same images in turns.

    Parameters
    ----------
    progress : Progress
        Where to report to.
    model, checkpoint : str
        One of SAM's encoders and its weights.
    rounds : int
        Turns of each variant.
    threads : int, optional
        CPU threads of each.
    device : str
        ``auto`` or a torch device.
    batch_size : int, optional
        Images in a call; by default 1 on a CPU and 8 on a GPU.
    only : tuple of str
        Names of variants; all without.
    profile : str, optional
        Where a trace of one call of the last of ours is written.

    Raises
    ------
    InputError
        When no variant runs, or there is no such model or device.
    """
    check_wishes("bench encode", model, rounds=rounds, threads=threads, batch_size=batch_size)
    place = resolve_device(device)
    batch = batch_size or (CUDA_BATCH if place.type == "cuda" else 1)
    variants = chosen(only)
    not_run = {variant.name: why for variant in variants if (why := why_not_here(variant))}
    variants = tuple(variant for variant in variants if variant.name not in not_run)
    traced = next((name for name in BEST_OF_OURS if name in [variant.name for variant in variants]), None)
    with tempfile.TemporaryDirectory(prefix="embedcache-bench-") as folder, ExitStack() as stack:

        def settings(variant: Variant) -> Settings:
            return Settings(
                variant=variant.name,
                model=model,
                checkpoint=checkpoint,
                device=str(place),
                batch=batch,
                threads=threads,
                reference=str(Path(folder) / "reference.npy"),
                profile=profile if variant.name == traced else None,
            )

        progress.start("starting", len(variants))
        children = {}
        for variant in variants:
            children[variant] = stack.enter_context(Child(settings(variant)))
            progress.advance(note=variant.label)
        figures = _take_turns(children, rounds, progress)
    not_run |= {variant.name: child.not_run for variant, child in children.items() if child.not_run}
    if not figures:
        raise InputError("Not one variant could run.", hint=_listed(not_run))
    return EncoderBench(model, checkpoint, str(place), batch, rounds, figures, not_run, machine(place))


def _take_turns(
    children: dict[Variant, Child], rounds: int, progress: Progress
) -> tuple[EncoderFigures, ...]:
    """Let the children encode, round by round; the figures of those that stayed to the end."""
    progress.start("taking turns", rounds * sum(child.not_run is None for child in children.values()))
    turns = take_turns(
        children, rounds, progress, lambda variant, seconds: f"{variant.label}: {seconds:.3g} s an image"
    )
    peaks = {variant: child.end() for variant, child in children.items() if child.not_run is None}
    return tuple(
        EncoderFigures(
            name=variant.name,
            label=variant.label,
            seconds=tuple(wall for wall, _ in turns[variant]),
            cpu_seconds=tuple(cpu for _, cpu in turns[variant]),
            peak_memory_bytes=peak,
            **children[variant].ready,
        )
        for variant, peak in peaks.items()
        if children[variant].not_run is None
    )


def _listed(not_run: dict[str, str]) -> str:
    return "\n".join(f"  {name}: {why}" for name, why in not_run.items())
