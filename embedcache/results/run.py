"""Turns a trained run into one that can show itself: ``Run.report`` writes its page.

Training stands on a lower floor and knows no pages, so the public ``train`` and ``Run`` are made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import embedcache.train as stage_two
from embedcache.progress import Progress
from embedcache.results.report import report
from embedcache.store import EmbeddingStore


class Run(stage_two.Run):
    """A training's folder: ``best``, ``checkpoint``, ``metrics``, ``summary``, and its page."""

    def report(self, output: str | Path | None = None) -> Path:
        """Write one self-contained HTML page about this run; by default ``report.html`` in its folder."""
        return report([self], output)


def train(
    store: EmbeddingStore | str | Path | Sequence[EmbeddingStore | str | Path],
    labels: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Train SAM's prompt encoder and mask decoder from stored embeddings.

    Neither the encoder nor the volume is opened: a store and labels are all that is needed.

    Parameters
    ----------
    store : EmbeddingStore or path, or a list of them
        Of one embedding space.
    labels : path, or a list of them
        One for each store: Zarr, TIFF, PNG, or a folder of images.
    out : path, optional
        The run's folder; default ``runs/STORE-LABELS`` in the current folder.
    progress : Progress, optional
        Where to report to; silent by default.
    **options
        The fields of :class:`embedcache.train.TrainOptions`: ``prompts``, ``loss``, ``steps``, ``val`` …

    Returns
    -------
    Run
        ``run.best`` is the figure on validation, ``run.checkpoint`` the path of the best checkpoint.

    Raises
    ------
    LabelError, ConfigError, WeightsError, MissingTilesError, MismatchError
        Before anything is written.
    """
    return Run(stage_two.train(store, labels, out=out, progress=progress, **options).path)
