"""Turns options of stage one into a refusal when one of them cannot be; pure but for a look at folders."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.errors import ConfigError
from embedcache.sam.vit import VARIANTS

if TYPE_CHECKING:
    from embedcache.encode.options import EncodeOptions

ATTENTIONS = ("auto", *VARIANTS)
"""Ways to compute the same attention; ``auto`` takes the fastest here."""

COMPILES = ("auto", "on", "off")
"""When the encoder is compiled; ``auto``: where the tiles to encode repay it."""


def check_machine(options: EncodeOptions) -> None:
    """Refuse what no machine could do, or what contradicts itself.

    Raises
    ------
    ConfigError
        Naming the option as the command line does.
    """
    for option, value, known in (
        ("--attention", options.attention, ATTENTIONS),
        ("--compile", options.compile, COMPILES),
    ):
        if value not in known:
            raise ConfigError(f"{option} {value}: expected {', '.join(known[:-1])} or {known[-1]}.")
    for option, number in (("--threads", options.threads), ("--workers", options.workers)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} {number}: must be at least 1.")
    if options.read_memory < 0:
        raise ConfigError(f"--read-memory {options.read_memory}: must be at least 0 bytes.")
    together = "--scheduler" if options.scheduler else "--workers" if options.workers > 1 else None
    if together and (options.num_parts or 1) > 1:
        raise ConfigError(
            f"{together} was given beside --num-parts: both share the work out.",
            hint="Parts are for processes that do not know each other; give one of the two. In a SLURM array "
            "also give --num-parts 1 --part-id 0 to encode everything with workers.",
        )
    if options.scheduler and options.workers > 1:
        raise ConfigError(
            "--workers was given beside --scheduler, whose workers are there already.",
            hint="Leave --workers out.",
        )
    if options.scheduler and re.fullmatch(r"(\w+://)?\S+:\d+", options.scheduler) is None:
        raise ConfigError(
            f"--scheduler {options.scheduler}: expected the address of a dask scheduler, such as tcp://HOST:8786.",
            hint="`dask scheduler` prints its own when it starts.",
        )
    _check_profile(options, together)


def _check_profile(options: EncodeOptions, together: str | None) -> None:
    if options.profile and Path(options.profile).is_dir():
        raise ConfigError(f"--profile {options.profile} is a folder; expected the name of a file to write.")
    if options.profile and not Path(options.profile).absolute().parent.is_dir():
        raise ConfigError(f"--profile {options.profile}: there is no such folder to put it in.")
    if options.profile and options.by_workers:
        raise ConfigError(
            f"--profile was given beside {together}: a trace is of one process.",
            hint="Trace a run without workers; --json gives the seconds by stage of all of them.",
        )


def check_source(options: EncodeOptions) -> None:
    """Refuse what no source could make right.

    Raises
    ------
    ConfigError
        Naming the option as the command line does.
    """
    if options.chunk_cache < 0:
        raise ConfigError(f"--chunk-cache {options.chunk_cache}: must be at least 0 bytes.")
    if not math.isfinite(options.empty_threshold):
        raise ConfigError(f"--empty-threshold {options.empty_threshold}: must be a finite number.")
    if options.skip_empty is False and options.empty_threshold != 0:
        raise ConfigError("--empty-threshold was given beside --no-skip-empty: give one of them.")
