"""Turns a volume and labels into a whole SAM fine-tuned end to end: the reference that says what freezing costs.

Nothing is cached here: segment-anything's own image encoder sees the pixels in every step, and its weights learn.
Tiles, split, labels, loss, course of the learning rate and figures are those of ``train`` and ``evaluate``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcache.bench.whole_sam import Sam, backward, order_of
from embedcache.errors import InputError
from embedcache.progress import Progress, Silent
from embedcache.results.evaluate import truth_of_plane
from embedcache.results.pictures import source_volume
from embedcache.results.stitch import stitch_plane, tile_probabilities
from embedcache.sam.decoder import Prompts, upscale_logits
from embedcache.store import EmbeddingStore
from embedcache.train.asking.metrics import Figures, ThresholdCounts, figures, probability
from embedcache.train.asking.rounds import run_rounds
from embedcache.train.asking.validation import Held, fixed_subset
from embedcache.train.questions.batch import collate_questions
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.stepping.schedule import default_warmup, rate
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.split import Split
from embedcache.volume import Volume

VALIDATED_TILES = 64
WEIGHT_DECAY, CLIP = 0.01, 1.0

Numbers = npt.NDArray[np.int64]


def fine_tune_whole(
    store: EmbeddingStore | str | Path,
    labels: Labels | str | Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    split: Split | Mapping[str, Any],
    supervision: str | Path | None = None,
    loss: str = "sam",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train encoder, prompt encoder and decoder together, without prompts, and measure them on held-out tiles.

    Parameters
    ----------
    store : EmbeddingStore or path
        Says which volume, tiles, pixels and starting weights; its embeddings are not read. One store only.
    labels : Labels or path
        Read as a mask.
    steps, batch_size, lr, seed, loss
        As those of train.
    split : Split or mapping
        Of the run that this one is compared with.
    supervision : path, optional
        Where labels count.
    progress : Progress, optional

    Returns
    -------
    dict
        Stitched figures on all held-out tiles, with ``prompt_source``, ``threshold``, ``seconds``, ``tiles``.

    Raises
    ------
    InputError
        When the volume is gone, or the split has no tiles of this store.
    MismatchError
        When the weights found are not those of the store.
    """
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    truth = (
        labels
        if isinstance(labels, Labels)
        else open_labels(labels, opened, supervision=supervision, task="semantic")
    )
    parts = split if isinstance(split, Split) else Split.from_dict(dict(split))
    volume = source_volume(opened)
    if volume is None:
        raise InputError(f"The volume of {opened.path} is not there; fine-tuning needs its pixels.")
    with closing(volume):
        whole = _Whole(opened, truth, volume, Sam.of(opened), seed, loss)
        return whole.run(
            _tiles(parts, "train", opened),
            _tiles(parts, "val", opened),
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            progress=progress or Silent(),
        )


@dataclass(frozen=True, eq=False)
class _Whole:
    store: EmbeddingStore
    labels: Labels
    volume: Volume
    sam: Sam
    seed: int
    loss: str

    def run(
        self, train: Numbers, val: Numbers, *, steps: int, batch_size: int, lr: float, progress: Progress
    ) -> dict[str, Any]:
        """Train, keep the best weights on validation, and measure them."""
        started = time.perf_counter()
        dataset = EmbeddingDataset(
            self.store,
            self.labels,
            prompts="none",
            objects="whole",
            tiles=train,
            seed=self.seed,
            jitter=True,
        )
        optimizer = torch.optim.AdamW(self.sam.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
        held = Held(EmbeddingDataset(self.store, self.labels, prompts="none", tiles=val), tuple(val.tolist()))
        chosen = np.array([n for part in fixed_subset([held], VALIDATED_TILES) for n in part.numbers])
        order = order_of(dataset, self.seed)
        untrained = self._validate(chosen)
        best, kept = None, copy.deepcopy(self.sam.state_dict())
        every = min(steps, max(20, steps // 20))  # as often as train looks at the held-out tiles
        progress.start("fine-tuning all of SAM", steps)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(
                    step, peak=lr, steps=steps, warmup=default_warmup(steps), schedule="cosine"
                )
            mean = self._step(optimizer, dataset, [next(order) for _ in range(batch_size)])
            progress.advance(1, f"loss {mean:.4f}")
            if (step + 1) % every == 0 or step + 1 == steps:
                now = self._validate(chosen)
                if best is None or now.dice > best.dice:
                    best, kept = now, copy.deepcopy(self.sam.state_dict())
        progress.finish()
        self.sam.load_state_dict(kept)
        best = best or untrained
        found = self._stitched(val, best.threshold)
        return {
            **{name: value for name, value in found.to_dict().items() if name != "threshold"},
            "threshold": probability(best.threshold),
            "untrained_dice": untrained.dice,
            "tiles": len(val),
            "steps": steps,
            "seconds": time.perf_counter() - started,
            "prompt_source": "free",
            "prompts": "none",
        }

    def _step(
        self, optimizer: torch.optim.Optimizer, dataset: EmbeddingDataset, drawn: list[tuple[int, int]]
    ) -> float:
        """One optimiser step over (epoch, tile number) pairs, image by image."""
        self.sam.train()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for epoch, number in drawn:
            embedding = self.sam.image_encoder(self._pixels(number))
            batch = collate_questions([dataset.question(number, epoch)], embedding)
            sums = run_rounds(
                self.sam.decoder,
                batch,
                loss=self.loss,
                asks=len(drawn),
                backward=backward,
            )
            total += float(sums.total)
        nn.utils.clip_grad_norm_(self.sam.parameters(), CLIP)
        optimizer.step()
        return total

    def _pixels(self, number: int) -> Tensor:
        preprocess = self.store.spec.preprocess
        pixels = preprocess.read(self.volume, self.store.tile(number))
        return torch.from_numpy(preprocess.to_input(pixels))[None]

    @torch.inference_mode()
    def _logits(self, number: int) -> Tensor:
        """The answer without prompts, (256, 256)."""
        self.sam.eval()
        embedding = self.sam.image_encoder(self._pixels(number))
        logits: Tensor = self.sam.decoder(embedding, Prompts.none(1)).low_res_logits[0, 0]
        return logits

    def _validate(self, numbers: Numbers) -> Figures:
        """The best figures over all thresholds, tile by tile, as training measures."""
        counts = ThresholdCounts()
        for number in numbers.tolist():
            tile = self.store.tile(number)
            truth, counted = self.labels.crop(tile) > 0, self.labels.supervised(tile)
            logits = upscale_logits(self._logits(number), tile)
            counts.add(logits, torch.from_numpy(truth), torch.from_numpy(counted.copy()))
        return counts.best("dice")

    def _stitched(self, numbers: Numbers, threshold: float) -> Figures:
        """Figures of stitched planes, each pixel once, as ``evaluate`` counts them."""
        level = probability(threshold)
        counts = np.zeros(3, np.int64)
        planes = self.store.table[numbers, 0]
        for plane in np.unique(planes).tolist():
            tiles = numbers[planes == plane].tolist()
            pieces = (
                (self.store.tile(n), tile_probabilities(self._logits(n), self.store.tile(n))) for n in tiles
            )
            found = stitch_plane(self.store.plane_size(plane), pieces) > level
            truth, counted = truth_of_plane(self.store, self.labels, tiles, plane)
            counts += [
                np.count_nonzero(found & truth & counted),
                np.count_nonzero(found & ~truth & counted),
                np.count_nonzero(~found & truth & counted),
            ]
        return figures(int(counts[0]), int(counts[1]), int(counts[2]), threshold)


def _tiles(split: Split, part: str, store: EmbeddingStore) -> Numbers:
    found = split.of_store(part, store)
    if found is None or len(found) == 0:
        raise InputError(f"The split ({split.rule}) has no tiles of {store.path} in its part {part}.")
    return np.asarray(found, dtype=np.int64)
