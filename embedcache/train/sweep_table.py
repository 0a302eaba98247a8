"""Turns the rows of a sweep into its result: sorted, as JSON, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""What is known of a run: its options, and its figures or why it failed."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Parameters
    ----------
    folder : Path
    metric : str
        What rows are sorted by.
    rows : tuple of dict
        One per run, the best first; those that failed at the end, with their reason.
    """

    folder: Path
    metric: str
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def best(self) -> Path | None:
        """The best run's folder; None when none finished."""
        return Path(self.rows[0]["run"]) if self.rows and "failed" not in self.rows[0] else None

    @property
    def failed(self) -> list[str]:
        """Names of the runs that failed."""
        return [row["name"] for row in self.rows if "failed" in row]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache train --sweep --json``."""
        return {
            "runs": list(self.rows),
            "best": None if self.best is None else str(self.best),
            "failed": self.failed,
        }

    def table(self) -> str:
        """The rows as text; a run that failed ends in its reason."""
        varied = list(self.rows[0]["options"]) if self.rows else []
        lines = [["run", *varied, self.metric, "untrained", "prompt source", "steps", "seconds"]]
        lines += [_words(row, varied) for row in self.rows]
        aligned = [line if len(line) == len(lines[0]) else line[:-1] for line in lines]
        widths = [max(len(line[i]) for line in aligned if i < len(line)) for i in range(len(lines[0]))]
        padded = (
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=False)) for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)


def _words(row: Row, varied: Sequence[str]) -> list[str]:
    words = [Path(row["run"]).name[:3], *(str(row["options"][name]) for name in varied)]
    if "failed" in row:
        return [*words, "failed: " + row["failed"].partition("\n")[0]]
    figures = [f"{row['value']:.4f}", f"{row['untrained']:.4f}", str(row["prompt_source"])]
    return [*words, *figures, str(row["steps"]), f"{row['seconds']:.1f}"]
