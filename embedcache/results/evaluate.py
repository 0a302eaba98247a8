"""Turns a store, labels and a checkpoint into figures beside those of the untrained decoder.

With a *free* prompt source tiles are stitched first, exactly as ``predict`` does, and each pixel counts once.
With an *oracle* source each object is asked for by itself and counted within its tile: those figures describe
interactive use, in which a person gives the prompts, and are not comparable with the free ones.

The untrained decoder is the one that came with the encoder, asked the same questions, at the threshold
that was best for it on validation when the run began (without a run: probability 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedcache.errors import ConfigError, InputError
from embedcache.progress import Progress, Silent
from embedcache.results.evaluated_tiles import choose_tiles
from embedcache.results.evaluation import Evaluation, keep
from embedcache.results.opened import as_checkpoint, open_store, probability_threshold, untrained_threshold
from embedcache.results.predict import DECODER_BATCH
from embedcache.results.stitch import Floats, Stitcher, prompts_for
from embedcache.sam.encoder import resolve_device
from embedcache.store import EmbeddingStore
from embedcache.train.asking.metrics import Figures, figures
from embedcache.train.asking.validation import Held, measure
from embedcache.train.checkpoint import Checkpoint, check_space
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.prompts import check_prompts, prompt_source
from embedcache.train.run import read_json
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.split import Split


def evaluate(
    store: EmbeddingStore | str | Path,
    labels: Labels | str | Path,
    *,
    checkpoint: Checkpoint | str | Path | None = None,
    split: str | None = None,
    prompts: str | None = None,
    supervision: str | Path | None = None,
    start: str | Path | None = None,
    boxes: str | Path | None = None,
    threshold: float | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a checkpoint beside the untrained decoder of the same store.

    What is measured of a run's best checkpoint with everything else left to the run is kept in its folder.

    Parameters
    ----------
    store : EmbeddingStore or path
    labels : Labels or path
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
    start : path, optional
        Earlier predictions for prompts of kind ``mask``; by default those that the run was trained with.
    boxes : path, optional
        Boxes of your own for prompts of kind ``boxes``; by default those that the run was trained with.
    threshold : float, optional
        A probability; the checkpoint's own by default, which was chosen on validation.
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
    opened = open_store(store)
    if opened is None:
        raise InputError(f"{store} is no store of embeddings.", hint="embedcache status lists stores.")
    trained = None if checkpoint is None else as_checkpoint(checkpoint)
    if trained is not None:
        check_space(trained, opened)
    truth = labels if isinstance(labels, Labels) else _open(labels, opened, trained, supervision)
    part, rule, numbers = choose_tiles(opened, truth, trained, split)
    level = probability_threshold(trained, threshold)
    asked = check_prompts(prompts or ("boxes" if boxes is not None else _default_prompts(trained, truth)))
    if boxes is not None and asked != "boxes":
        raise ConfigError(f"--boxes is what --prompts boxes asks with; the prompts are {asked}.")
    source = prompt_source(asked)
    own = opened.decoder()
    before = untrained_threshold(trained, asked)
    decoders: list[tuple[nn.Module, float]] = [(own, before)]
    if trained is not None:
        decoders.append((trained.model(), level))
    elif threshold is not None:
        decoders.append((own, level))
    measured = _Measure(
        opened,
        truth,
        numbers,
        asked,
        resolve_device(device),
        batch_size or DECODER_BATCH,
        progress or Silent(),
        start or _own("start", opened, trained),
        boxes or _own("boxes", opened, trained),
    )
    objects = trained.objects if trained is not None and trained.prompts == asked else None
    if source == "free":
        found = measured.stitched(decoders)
    else:
        found = [measured.objects(decoder, at, objects) for decoder, at in decoders]
    evaluation = Evaluation(
        figures=found[-1],
        baseline=found[0],
        tiles=len(numbers),
        split=part,
        rule=rule,
        prompts=asked,
        prompt_source=source,
        threshold=level,
        counted="stitched pixels" if source == "free" else "objects",
        untrained=bool(opened.provenance.get("untrained")),
        baseline_threshold=before,
    )
    own_files = supervision is None and start is None and boxes is None
    as_the_run = threshold is None and own_files and not isinstance(labels, Labels)
    if trained is not None and as_the_run and asked == trained.measured_prompts:
        index = Split.from_dict(trained.split).index_of(opened)
        if index is not None:
            keep(evaluation, trained, index, truth.source, progress or Silent())
    return evaluation


@dataclass(frozen=True)
class _Measure:
    """How decoders are asked and counted, the same for each."""

    store: EmbeddingStore
    labels: Labels
    numbers: npt.NDArray[np.int64]
    prompts: str
    device: torch.device
    batch_size: int
    progress: Progress
    start: str | Path | None
    boxes: str | Path | None

    def stitched(self, decoders: list[tuple[nn.Module, float]]) -> list[Figures]:
        """Figures of stitched planes, each pixel once, for decoders at their thresholds."""
        prompts_of = prompts_for(
            *(self.prompts, self.store, self.numbers, self.start, self.labels.source),
            boxes=self.boxes,
            progress=self.progress,
        )
        stitchers = [
            Stitcher(
                self.store,
                decoder.eval().to(self.device),
                self.numbers,
                prompts_of,
                self.device,
                self.batch_size,
            )
            for decoder, _ in decoders
        ]
        counts = np.zeros((len(decoders), 3), np.int64)
        planes = stitchers[0].planes
        self.progress.start("evaluating planes", len(planes))
        for plane in planes:
            truth, counted = truth_of_plane(self.store, self.labels, stitchers[0].tiles_of(plane), plane)
            for row, (stitcher, (_, threshold)) in enumerate(zip(stitchers, decoders, strict=True)):
                counts[row] += _count(stitcher.plane(plane), truth, counted, threshold)
            self.progress.advance()
        self.progress.finish()
        return [
            figures(int(tp), int(fp), int(fn), threshold)
            for (tp, fp, fn), (_, threshold) in zip(counts, decoders, strict=True)
        ]

    def objects(self, decoder: nn.Module, threshold: float, objects: str | None) -> Figures:
        """Figures of objects asked one by one with prompts from the truth: at most 8 of a tile, the same ones."""
        dataset = EmbeddingDataset(
            self.store, self.labels, prompts=self.prompts, tiles=self.numbers, objects=objects
        )
        held = Held(dataset, tuple(int(number) for number in dataset.tiles))
        with np.errstate(divide="ignore"):
            logit = np.log(np.float64(threshold)) - np.log1p(-np.float64(threshold))
        counts = measure(decoder.to(self.device), [held], self.device, np.array([logit]))
        return counts.at(0.0)


def truth_of_plane(
    store: EmbeddingStore, labels: Labels, numbers: list[int], plane: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Truth of a plane and where it counts: two bool arrays (height, width); False beyond the given tiles."""
    height, width = store.plane_size(plane)
    truth, counted = np.zeros((height, width), np.bool_), np.zeros((height, width), np.bool_)
    for number in numbers:
        tile = store.tile(number)
        rows, columns = tile.slices
        place = (slice(rows.start, min(rows.stop, height)), slice(columns.start, min(columns.stop, width)))
        size = np.s_[: place[0].stop - place[0].start, : place[1].stop - place[1].start]
        truth[place] = labels.crop(tile)[size] > 0
        counted[place] = labels.supervised(tile)[size]
    return truth, counted


def _count(
    plane: Floats, truth: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_], threshold: float
) -> npt.NDArray[np.int64]:
    """True positives, false positives, false negatives of one plane."""
    found = (plane > threshold) & counted
    wanted = truth & counted
    both = int(np.count_nonzero(found & wanted))
    return np.array([both, np.count_nonzero(found) - both, np.count_nonzero(wanted) - both], dtype=np.int64)


def _default_prompts(checkpoint: Checkpoint | None, labels: Labels) -> str:
    """How the figure was measured that chose the checkpoint; without one, what suits the labels."""
    if checkpoint is not None:
        return checkpoint.measured_prompts
    return "none" if labels.kind == "semantic" else "box"


def _open(
    path: str | Path, store: EmbeddingStore, checkpoint: Checkpoint | None, supervision: str | Path | None
) -> Labels:
    """Open labels as the run did: the same task, ignored value, and supervision unless another is given."""
    task = "auto" if checkpoint is None else checkpoint.task
    mask = supervision or _own("supervision", store, checkpoint)
    ignore = None if checkpoint is None else checkpoint.settings.get("ignore")
    return open_labels(path, store, supervision=mask, task=task, ignore=ignore)


def _own(name: str, store: EmbeddingStore, checkpoint: Checkpoint | None) -> str | None:
    """The file of this option that a checkpoint's run used on this store; None when there was none."""
    if checkpoint is None or checkpoint.path is None:
        return None
    config = checkpoint.path.parent / "config.json"
    index = Split.from_dict(checkpoint.split).index_of(store)
    if index is None or not config.is_file():
        return None
    options = read_json(config).get("options", {})
    path = options.get(name)
    if isinstance(path, list):
        path = path[index]
    return None if path is None else str(path)
