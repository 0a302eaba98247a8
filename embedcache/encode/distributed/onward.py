"""Turns steps that may be taken back into progress that only goes forward."""

from __future__ import annotations

from embedcache.progress import Progress


class Onward:
    """Reports steps; those that are lost are reported once, not again when they are done again.

    Parameters
    ----------
    progress : Progress
        Where they are reported to.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lost = 0

    def advance(self, steps: int, note: str = "") -> None:
        """Count steps; a negative number takes some back."""
        self._lost -= steps
        if self._lost < 0:
            forward, self._lost = -self._lost, 0
            self._progress.advance(forward, note)
