"""Turns what steps and validations give into rows of ``metrics.jsonl``, and of whatever else shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from embedcache.files import append_line
from embedcache.train.loggers import Logger, log_row
from embedcache.train.run import Json

SECONDS_BETWEEN = 2.0
"""Rows are made durable together, at least so often while steps are done; a step may take less than an fsync."""

_COUNT = "steps"


class Rows:
    """The end of a ``metrics.jsonl``.

    Parameters
    ----------
    path : Path or None
        The file; None: another process writes it.
    logger : Logger
        Gets every row too.
    """

    def __init__(self, path: Path | None, logger: Logger) -> None:
        self._path, self.logger = path, logger
        self._waiting: list[str] = []
        self._written = time.monotonic()

    def add(self, row: Json) -> None:
        """One row more; on the disk within two seconds of further rows, or with :meth:`flush`."""
        if self._path is None:
            return
        self._waiting.append(json.dumps(row))
        log_row(self.logger, row)
        if time.monotonic() - self._written >= SECONDS_BETWEEN:
            self.flush()

    def flush(self) -> None:
        """Make all rows durable."""
        if self._path is not None and self._waiting:
            append_line(self._path, "\n".join(self._waiting))
            self._waiting = []
        self._written = time.monotonic()


class Window:
    """Means of what steps gave since the last row.

    Parameters
    ----------
    sums : mapping, optional
        What :meth:`to_dict` gave, to go on with it.
    """

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self._sums = dict(sums or {})

    def add(self, values: Mapping[str, float]) -> None:
        """What one step gave."""
        for name, value in {_COUNT: 1.0, **values}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The means; the window is empty then."""
        count = self._sums.pop(_COUNT, 1.0)
        means = {name: total / count for name, total in self._sums.items()}
        self._sums = {}
        return means

    def to_dict(self) -> dict[str, float]:
        """The sums, as JSON."""
        return dict(self._sums)
