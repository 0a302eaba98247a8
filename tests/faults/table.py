"""All rows, in the order of the page."""

from __future__ import annotations

from . import (
    elsewhere,
    flips,
    hostile,
    identity,
    ill,
    kills,
    mends,
    power,
    signals,
    space,
    steps,
    training,
    writers,
)
from .outcome import Row

ROWS: tuple[Row, ...] = (
    *kills.ROWS,
    *steps.ROWS,
    *power.ROWS,
    *space.ROWS,
    *signals.ROWS,
    *writers.ROWS,
    *flips.ROWS,
    *mends.ROWS,
    *identity.ROWS,
    *ill.ROWS,
    *hostile.ROWS,
    *elsewhere.ROWS,
    *training.ROWS,
)


def named(names: list[str]) -> tuple[Row, ...]:
    """Rows by name; all of them when none is named."""
    unknown = sorted(set(names) - {row.name for row in ROWS})
    if unknown:
        raise SystemExit(f"no row {', '.join(unknown)}; known: {', '.join(row.name for row in ROWS)}")
    return tuple(row for row in ROWS if not names or row.name in names)
