"""Turns figures into an ``Evaluation``: as JSON, and kept in the run that they describe.

What ``evaluate`` measures of a run as the run was meant (its best checkpoint, all its held-out tiles, its own
labels, prompts and threshold) is kept in its folder as ``evaluation.json``, and its page shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import StorageError
from embedcache.progress import Progress
from embedcache.remote import is_remote
from embedcache.results.thresholds import Sweep, sweep_note
from embedcache.train.asking.metrics import Figures
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.run import Run, read_json, write_json
from embedcache.train.truth.split import Split

KEPT = "evaluation.json"
"""File of a run folder."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one decoder on one part of a store's labelled tiles.

    Parameters
    ----------
    figures : Figures
        Of the checkpoint, or of the untrained decoder where none was given.
    baseline : Figures
        Of the untrained decoder.
    tiles : int
        Tiles that were decoded.
    split : str
        ``val``, ``train`` or ``all``; ``overfit`` where training and held-out tiles were the same.
    rule : str
        How that part was chosen, in words.
    prompts, prompt_source : str
        How the decoder was asked; ``oracle`` when the prompts came from the truth.
    threshold : float
        Probability above which a pixel is in the mask.
    counted : str
        ``stitched pixels`` or ``objects``.
    untrained : bool
        Whether the encoder had random weights.
    baseline_threshold : float
        The same for the baseline: by the same rule as the checkpoint's where its run is known, else 0.5.
    tiles_missing : int
        Labelled tiles of that part that were to be encoded and are not: they do not count.
    thresholds : Sweep, optional
        Figures of the same decoder at a ladder of thresholds, over all pixels of all stores.
    origin : tuple of dict
        Where the data of each store come from.
    stores : tuple of (str, Evaluation)
        Of several stores, by their paths: each by itself. The figures above are over all their pixels together.
    """

    figures: Figures
    baseline: Figures
    tiles: int
    split: str
    rule: str
    prompts: str
    prompt_source: str
    threshold: float
    counted: str
    untrained: bool
    baseline_threshold: float = 0.5
    tiles_missing: int = 0
    thresholds: Sweep | None = None
    origin: tuple[dict[str, Any], ...] = ()
    stores: tuple[tuple[str, Evaluation], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache evaluate --json``."""
        found = {
            **_numbers(self.figures),
            "tiles": self.tiles,
            "tiles_missing": self.tiles_missing,
            "prompt_source": self.prompt_source,
            "prompts": self.prompts,
            "split": self.split,
            "split_rule": self.rule,
            "threshold": self.threshold,
            "counted": self.counted,
            "untrained": self.untrained,
            "baseline": {**_numbers(self.baseline), "threshold": self.baseline_threshold},
            "origin": list(self.origin),
        }
        if self.thresholds is not None:
            found["thresholds"] = {**self.thresholds.to_dict(), "note": sweep_note(self.split)}
        if self.stores:
            found["stores"] = [{"store": path, **one.to_dict()} for path, one in self.stores]
        return found


def _numbers(found: Figures) -> dict[str, float]:
    return {name: value for name, value in found.to_dict().items() if name != "threshold"}


def keep(found: Evaluation, checkpoint: Checkpoint, index: int, labels: str, progress: Progress) -> None:
    """Keep an evaluation in the checkpoint's run, if it is of the run's best, on all that the run held out.

    Parameters
    ----------
    found : Evaluation
        Measured as the run was: with its own prompts, supervision and threshold.
    checkpoint : Checkpoint
        What was measured.
    index : int
        Which of the run's stores was measured.
    labels : str
        Where the truth came from.
    progress : Progress
        Told when the run cannot be written.
    """
    if checkpoint.path is None or not (checkpoint.path.parent / "config.json").is_file():
        return
    run = Run(checkpoint.path.parent)
    held_out = sum(len(numbers) for _, numbers in Split.from_dict(checkpoint.split).val)
    of_the_run = (
        checkpoint.path == run.checkpoint
        and (found.split, found.tiles, found.prompt_source) == ("val", held_out, "free")
        and _is_same(labels, run.config["labels"][index])
    )
    if not of_the_run:
        return
    try:
        write_json(run.path / KEPT, {**found.to_dict(), "step": checkpoint.step})
    except StorageError as error:
        progress.say(f"The figures are not kept in the run: {error.message}")


def _is_same(one: str, other: str) -> bool:
    """Whether two paths are of one file; addresses are compared as they are written."""
    if is_remote(one) or is_remote(other):
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def kept(run: Run) -> dict[str, Any] | None:
    """The evaluation of a finished run's best checkpoint; None when there is none, or the run went on since."""
    if not run.finished or not (run.path / KEPT).is_file():
        return None
    found = read_json(run.path / KEPT)
    return found if found.get("step") == run.summary["best_step"] else None
