"""Turns a store, labels and a checkpoint into figures beside those of the untrained decoder.

With a *free* prompt source tiles are stitched first, exactly as ``predict`` does, and each pixel counts once.
With an *oracle* source each object is asked for by itself and counted within its tile: those figures describe
interactive use, in which a person gives the prompts, and are not comparable with the free ones.

Of several stores the pixels of all are counted together, as the ink contests score their fragments, and each store
by itself too.

The untrained decoder is the one that came with the encoder, asked the same questions, at the threshold
that was best for it on validation when the run began (without a run: probability 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from embedcache.errors import counted
from embedcache.progress import Progress, Silent
from embedcache.results.about import store_origin
from embedcache.results.as_trained import own_file
from embedcache.results.evaluated_pairs import (
    Each,
    OpenedPair,
    Stores,
    Truths,
    asked_with,
    open_pair,
    paired,
    require_once,
)
from embedcache.results.evaluation import Evaluation, keep
from embedcache.results.measuring import Measuring, truth_of_plane
from embedcache.results.opened import as_checkpoint, probability_threshold, untrained_threshold
from embedcache.results.predict import DECODER_BATCH
from embedcache.results.thresholds import (
    LADDER,
    ProbabilityCounts,
    joined,
    read_thresholds,
    sweep_note,
    sweep_of,
)
from embedcache.sam.encoder import resolve_device
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.questions.prompts import prompt_source
from embedcache.train.truth.split import Split

__all__ = ["evaluate", "truth_of_plane"]


def evaluate(
    store: Stores,
    labels: Truths,
    *,
    checkpoint: Checkpoint | str | Path | None = None,
    split: str | None = None,
    prompts: str | None = None,
    supervision: Each = None,
    start: Each = None,
    boxes: Each = None,
    threshold: float | None = None,
    thresholds: bool | str | Sequence[float] | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a checkpoint beside the untrained decoder of the same store.

    What is measured of a run's best checkpoint with everything else left to the run is kept in its folder.

    Parameters
    ----------
    store : EmbeddingStore or path, or several
        Of several the figures are over all their pixels together; each by itself is in ``stores``.
    labels : Labels or path, or as many
        The truth.
    checkpoint : Checkpoint, Run or path, optional
        Without it the figures are those of the store's own, untrained decoder.
    split : "val", "train" or "all", optional
        A checkpoint's own tiles when it was trained on this store, ``val`` by default. For a store that it never
        saw only ``all`` makes sense and is the default. Without a checkpoint the default is ``all`` too; ``val``
        and ``train`` are then the parts that ``train`` would choose by itself.
    prompts : str, optional
        By default those that chose the checkpoint: none for semantic tasks, whatever it was trained with.
    supervision : path, optional
        Labels count only where this mask is positive; by default the mask that the run was trained with.
        ``"none"``: everywhere. This and the next two may be given once for each store.
    start : path, optional
        Earlier predictions for prompts of kind ``mask``; by default those that the run was trained with.
    boxes : path, optional
        Boxes of your own for prompts of kind ``boxes``; by default those that the run was trained with.
    threshold : float, optional
        A probability; the checkpoint's own by default, which was chosen on validation.
    thresholds : str, sequence of float or True, optional
        Figures at each of these as well, in the same pass: ``A:B:STEP``, probabilities, or 0.05 to 0.95.
    device, batch_size : optional
        Where the decoder runs, and tiles per call.
    progress : Progress, optional
        Where to report to.

    Returns
    -------
    Evaluation

    Raises
    ------
    MismatchError
        When store and checkpoint are of different embedding spaces.
    LabelError, MissingTilesError, ConfigError
        When labels do not fit, nothing of the split is encoded, or an option is wrong.
    """
    tell = progress or Silent()
    pairs = paired(store, labels, supervision=supervision, start=start, boxes=boxes)
    trained = None if checkpoint is None else as_checkpoint(checkpoint)
    level = probability_threshold(trained, threshold)
    ladder = _ladder(thresholds)
    opened = [open_pair(pair, trained, split) for pair in pairs]
    require_once([one.store for one in opened])
    asked = asked_with(opened, trained, prompts)
    told = _Told(asked, level, untrained_threshold(trained, asked), ladder)
    how = _How(resolve_device(device), batch_size or DECODER_BATCH, tell)
    counts = [_count(one, trained, told, how) for one in opened]
    result = told.evaluation(opened, _together(counts))
    if len(opened) > 1:
        each = [told.evaluation([one], found) for one, found in zip(opened, counts, strict=True)]
        parts = tuple((str(one.store.path), found) for one, found in zip(opened, each, strict=True))
        result = replace(result, stores=parts)
    _say(result, tell)
    as_the_run = threshold is None and all(pair.is_as_trained for pair in pairs)
    if trained is not None and len(opened) == 1 and as_the_run and asked == trained.measured_prompts:
        index = Split.from_dict(trained.split).index_of(opened[0].store)
        if index is not None:
            keep(result, trained, index, opened[0].truth.source, tell)
    return result


@dataclass(frozen=True)
class _How:
    """Where decoders run, and who is told."""

    device: torch.device
    batch_size: int
    progress: Progress


@dataclass(frozen=True)
class _Told:
    """How was asked and at which thresholds is counted: what every evaluation of a call has in common."""

    prompts: str
    level: float
    before: float
    ladder: tuple[float, ...]

    @property
    def source(self) -> str:
        return prompt_source(self.prompts)

    def evaluation(self, opened: Sequence[OpenedPair], counts: Sequence[ProbabilityCounts]) -> Evaluation:
        """Of some stores, from the counts of the untrained decoder (first) and of the one that is measured."""
        parts, rules = (
            list(dict.fromkeys(words))
            for words in zip(*((one.tiles.part, one.tiles.rule) for one in opened), strict=True)
        )
        return Evaluation(
            figures=counts[-1].at(self.level),
            baseline=counts[0].at(self.before),
            tiles=sum(len(one.tiles.numbers) for one in opened),
            split=" + ".join(parts),
            rule="; ".join(rules),
            prompts=self.prompts,
            prompt_source=self.source,
            threshold=self.level,
            counted="stitched pixels" if self.source == "free" else "objects",
            untrained=any(one.store.provenance.get("untrained") for one in opened),
            baseline_threshold=self.before,
            tiles_missing=sum(one.tiles.missing for one in opened),
            thresholds=sweep_of(counts[-1], self.ladder) if self.ladder else None,
            origin=tuple(store_origin(one.store).to_dict() for one in opened),
        )


def _ladder(thresholds: bool | str | Sequence[float] | None) -> tuple[float, ...]:
    if thresholds is None or thresholds is False:
        return ()
    return read_thresholds(LADDER if thresholds is True else thresholds)


def _count(opened: OpenedPair, trained: Checkpoint | None, told: _Told, how: _How) -> list[ProbabilityCounts]:
    """Counts of one store: of its untrained decoder, and of the checkpoint's where there is one."""
    store, own = opened.store, opened.store.decoder()
    decoders = [own] if trained is None else [own, trained.model()]
    measuring = Measuring(
        store,
        opened.truth,
        opened.tiles.numbers,
        told.prompts,
        how.device,
        how.batch_size,
        how.progress,
        opened.pair.start or own_file("start", store, trained),
        opened.pair.boxes or own_file("boxes", store, trained),
    )
    levels = (told.before, told.level, *told.ladder)
    if told.source == "free":
        return measuring.stitched(decoders, levels)
    objects = trained.objects if trained is not None and trained.prompts == told.prompts else None
    return measuring.objects(decoders, levels, objects)


def _together(counts: Sequence[list[ProbabilityCounts]]) -> list[ProbabilityCounts]:
    """Counts of all stores as one, decoder by decoder."""
    return [joined(each) for each in zip(*counts, strict=True)]


def _say(found: Evaluation, tell: Progress) -> None:
    if found.tiles_missing:
        tell.say(
            f"{counted(found.tiles_missing, 'labelled tile')} of {found.split} not encoded (empty, failed or "
            "not yet): what lies there does not count."
        )
    if found.thresholds is not None:
        tell.say(f"best threshold {found.thresholds.best.threshold:g}: {sweep_note(found.split)}.")
