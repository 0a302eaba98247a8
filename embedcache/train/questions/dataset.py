"""Turns a store and labels into questions of its tiles: their targets, weights and prompts; and into items.

What a question holds depends on (seed, epoch, store, tile) only: not on the order of asking, the number of
threads or workers, or what was drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedcache.errors import ConfigError
from embedcache.geometry import Tile, see
from embedcache.store import EmbeddingStore
from embedcache.train.asking.rounds import plan_rounds
from embedcache.train.questions.batch import Batch, TileKey, TileQuestion
from embedcache.train.questions.box_objects import TileBoxes
from embedcache.train.questions.box_prompts import BoxPrompts, open_boxes, require_boxes
from embedcache.train.questions.chosen_tiles import chosen_tiles
from embedcache.train.questions.items import TrainingItem, collate
from embedcache.train.questions.jitter import draw_cut, jitter_window
from embedcache.train.questions.mask_prompts import MaskPrompts, require_start
from embedcache.train.questions.object_table import TileObject
from embedcache.train.questions.objects import check_objects, default_objects, shown_objects
from embedcache.train.questions.prompts import TilePrompts, check_prompts, make_prompts
from embedcache.train.questions.targets import CUT, low_res_targets
from embedcache.train.truth.label_memory import LabelledTile, LabelMemory
from embedcache.train.truth.labels import Labels, open_labels

_POINTED = ("points", "box", "iterative", "boxes")
"""Prompts that point to an object, which a window must not cut."""

__all__ = ["Batch", "EmbeddingDataset", "TrainingItem", "collate"]


class EmbeddingDataset(Dataset[TrainingItem]):
    """A torch dataset of a store's labelled tiles, for the trainer and for one's own loop.

    Parameters
    ----------
    store : EmbeddingStore
    labels : path or Labels
        Opened by :func:`~embedcache.train.truth.labels.open_labels` when a path.
    prompts : str, optional
        A kind of :mod:`embedcache.train.questions.prompts`; default: none for semantic labels, box for instances.
    tiles : sequence of int, optional
        Numbers of base tiles; default: all encoded ones that the labels touch. For prompted objects, tiles
        without any object are left out.
    task : "auto", "semantic" or "instances"
        How to read a path's values.
    objects : "whole", "components" or "ids", optional
        Default: ids for prompted instances, else whole.
    max_objects : int
        At most this many objects of a tile, drawn anew each epoch.
    seed : int
        With the epoch, the store and the tile's number it decides everything random.
    ignore : int, optional
        Pixels of this value do not count, where labels are a path.
    supervision : path, optional
        Labels count only where this mask is positive, where labels are a path.
    store_index : int
        Tells stores of one run apart: equal tile numbers of two of them draw differently.
    rounds : int
        How often an ``iterative`` query is asked; the other kinds are asked once.
    views : bool
        Draw one of the committed views of a tile in each epoch, rather than view 0 always.
    jitter : bool
        Move label edges a little, and let only a part of a tile count, drawn anew each epoch.
    start : MaskPrompts, optional
        What ``prompts="mask"`` starts from.
    boxes : path or BoxPrompts, optional
        What ``prompts="boxes"`` asks with, see :mod:`embedcache.train.questions.box_files`; tiles without any are
        left out.
    free_share : float
        Share of tiles that are asked without prompts, for everything positive at once.

    Raises
    ------
    LabelError, ConfigError, MissingTilesError
    """

    def __init__(
        self,
        store: EmbeddingStore,
        labels: str | Path | Labels,
        *,
        prompts: str | None = None,
        tiles: Sequence[int] | npt.NDArray[np.int64] | None = None,
        task: str = "auto",
        seed: int = 0,
        objects: str | None = None,
        max_objects: int = 8,
        ignore: int | None = None,
        store_index: int = 0,
        rounds: int = 1,
        views: bool = False,
        jitter: bool = False,
        start: MaskPrompts | None = None,
        boxes: str | Path | BoxPrompts | None = None,
        supervision: str | Path | None = None,
        free_share: float = 0.0,
    ) -> None:
        self.store, self.store_index = store, store_index
        if not isinstance(labels, Labels):
            labels = open_labels(labels, store, supervision=supervision, task=task, ignore=ignore)
        elif supervision is not None:
            raise ConfigError(
                "Labels that are open have their supervision mask already; give it to open_labels."
            )
        self.labels = labels
        kind = self.labels.kind
        self.prompts = check_prompts(prompts or ("none" if kind == "semantic" else "box"))
        self.objects = check_objects(objects or default_objects(kind, self.prompts), kind, self.prompts)
        self.max_objects, self.seed, self.epoch = max_objects, seed, 0
        self.rounds = rounds if self.prompts == "iterative" else 1
        self.views, self.jitter, self.free_share, self.start = views, jitter, free_share, start
        if boxes is not None and not isinstance(boxes, BoxPrompts):
            boxes = open_boxes(boxes, store)
        self.boxes = require_boxes(boxes) if self.prompts == "boxes" else None
        self.tiles = chosen_tiles(store, self.labels, tiles, self.objects, self.boxes)
        if views and not store.base[self.tiles].all():
            raise ConfigError("Views are drawn of base tiles; some of the tiles that were given are views.")
        if self.prompts == "mask":
            require_start(start, store, self.tiles, self.labels.source)
        self._memory = LabelMemory(self.labels, self.objects)
        self._reader: Any = None

    def __len__(self) -> int:
        return len(self.tiles)

    def set_epoch(self, epoch: int) -> None:
        """Draw prompts and objects anew, as every epoch should."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> TrainingItem:
        return self.item(int(self.tiles[index]), self.epoch)

    def item(self, number: int, epoch: int) -> TrainingItem:
        """The item of a tile in an epoch."""
        if self._reader is None:
            self._reader = self.store.reader()
        return self.item_with(number, epoch, self._reader.read([self.drawn(number, epoch)])[0])

    def item_with(self, number: int, epoch: int, embedding: Tensor) -> TrainingItem:
        """The item of a tile whose embedding was read already, float32 (256, 64, 64)."""
        return TrainingItem(self.question(number, epoch), embedding)

    def drawn(self, number: int, epoch: int) -> int:
        """The tile that is read for a base tile in an epoch: one of its committed views."""
        return self._view(number, self._rng(number, epoch))

    def question(self, number: int, epoch: int) -> TileQuestion:
        """What a base tile is asked in an epoch; no embedding is read. Several threads may ask at once.

        Parameters
        ----------
        number : int
            A tile of view 0.
        epoch : int
        """
        return self.question_and_objects(number, epoch)[0]

    def question_and_objects(
        self, number: int, epoch: int
    ) -> tuple[TileQuestion, list[TileObject], npt.NDArray[np.bool_] | None]:
        """Also the objects it asks for and where labels count (None: everywhere), both as seen, in tile px."""
        rng = self._rng(number, epoch)  # the order of the draws is part of what a seed means
        read = self._view(number, rng)
        begins_with_box, free = bool(rng.random() >= 0.5), bool(rng.random() < self.free_share)
        tile, known = self.store.tile(read), self._memory.of(self.store.tile(number))
        jitter = self._rng(number, epoch, 1) if self.jitter else None  # its draws change no others
        supervised = None if known.supervised is None else see(known.supervised, tile.view)
        boxes = None if self.boxes is None else TileBoxes.draw(self.boxes, tile, self.max_objects, rng)
        if boxes is None:
            objects = known.table.draw(self.max_objects, rng)
        else:
            objects = boxes.objects(known.table, self.objects)
        if self.objects != "whole" or boxes is not None:
            objects = [*objects, known.table.whole()]
        cut = CUT if jitter is None else draw_cut(jitter)
        targets, weight = low_res_targets([one.seen(tile.view) for one in objects], supervised, tile, cut=cut)
        chosen = shown_objects(targets, weight) if boxes is None else boxes.shown(objects, targets, weight)
        asked = [objects[i] for i in chosen]
        if boxes is None:
            prompts = self._prompts(asked, targets[chosen], tile, rng, known)
        else:
            prompts = boxes.prompts(chosen, tile, jitter)
        speaks = plan_rounds(self.rounds, rng)
        draws = torch.from_numpy(rng.random((len(chosen), len(speaks))))
        if jitter is not None:
            pointed = targets[chosen].max(axis=0) if self.prompts in _POINTED and not free else None
            weight = jitter_window(weight, jitter, pointed)
        question = TileQuestion(
            key=TileKey(self.store_index, number),
            number=read,
            tile=tile.seen,
            targets=torch.from_numpy(targets[chosen]),
            whole=torch.from_numpy(targets[-1]),
            weight=torch.from_numpy(weight),
            prompts=prompts,
            begins_with_box=begins_with_box,
            free=free,
            draws=draws,
            speaks=speaks,
        )
        return question, [one.seen(tile.view) for one in asked], supervised

    def _prompts(
        self,
        objects: list[TileObject],
        targets: npt.NDArray[np.uint8],
        tile: Tile,
        rng: np.random.Generator,
        known: LabelledTile,
    ) -> TilePrompts:
        """First prompts; an object too small for any target is prompted as one that is not there."""
        if self.prompts == "mask" and self.start is not None:
            return TilePrompts(masks=self.start.logits(tile)[None])
        there = [
            one if target.any() else TileObject.nothing(one.size)
            for one, target in zip(objects, targets, strict=True)
        ]
        return make_prompts(self.prompts, there, tile, rng, known.supervised)

    def _rng(self, number: int, epoch: int, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, self.store_index, number, *more])

    def _view(self, number: int, rng: np.random.Generator) -> int:
        """Draw one of a base tile's committed views; the draw is made even where there is no choice."""
        draw = rng.random()
        if not self.views:
            return number
        found = sorted(self.store.views_of(number).items())
        return found[int(draw * len(found))][1]

    def __getstate__(self) -> dict[str, Any]:
        """What a DataLoader's worker gets: no open files."""
        return {**self.__dict__, "_reader": None}
