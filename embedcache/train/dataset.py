"""Turns a store and labels into questions of its tiles: their targets, weights and prompts; and into items.

What a question holds depends on (seed, epoch, store, tile) only: not on the order of asking, the number of
threads or workers, or what was drawn before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedcache.errors import ConfigError, LabelError, MissingTilesError
from embedcache.geometry import Tile, see
from embedcache.sam.decoder import Prompts
from embedcache.store import EmbeddingStore
from embedcache.train.batch import TileKey, TileQuestion
from embedcache.train.labels import Labels, open_labels
from embedcache.train.object_table import ObjectTable, object_table
from embedcache.train.objects import check_objects, default_objects
from embedcache.train.prompts import TilePrompts, check_prompts, collate_prompts, make_prompts
from embedcache.train.rounds import plan_rounds
from embedcache.train.targets import low_res_targets

REMEMBERED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TrainingItem:
    """One tile, ready for the decoder.

    Parameters
    ----------
    number : int
        The tile's number in its store.
    tile : Tile
        Its place.
    image_embedding : float32 (256, 64, 64)
    low_res_masks : float32 (P, 256, 256)
        Targets, 0 or 1; P ≥ 1.
    weight : float32 (256, 256)
        0 in the padding and where nothing is supervised, else 1.
    prompts : TilePrompts
        For the P objects, in the 1024 frame.
    """

    number: int
    tile: Tile
    image_embedding: Tensor
    low_res_masks: Tensor
    weight: Tensor
    prompts: TilePrompts


@dataclass(frozen=True)
class Batch:
    """Items of B images with Q objects in all, image by image.

    Parameters
    ----------
    numbers : tuple of int
        Tile numbers, one per image.
    image_embeddings : float32 (B, 256, 64, 64)
    low_res_masks : float32 (Q, 256, 256)
    weight : float32 (Q, 256, 256)
        Each object with the weight of its image.
    prompts : Prompts
        Ragged: ``prompts.counts`` gives the objects of each image.
    """

    numbers: tuple[int, ...]
    image_embeddings: Tensor
    low_res_masks: Tensor
    weight: Tensor
    prompts: Prompts

    @property
    def prompted(self) -> bool:
        """Whether it holds any prompt."""
        return self.prompts.point_coords is not None or self.prompts.boxes is not None

    def unprompted(self) -> Batch:
        """The same images asked without a prompt: one query each, for all of its objects at once."""
        ends = np.cumsum(self.prompts.counts)
        starts = [0, *(int(end) for end in ends[:-1])]
        masks = [
            self.low_res_masks[start:end].amax(dim=0)
            for start, end in zip(starts, map(int, ends), strict=True)
        ]
        return Batch(
            self.numbers,
            self.image_embeddings,
            torch.stack(masks),
            self.weight[starts],
            Prompts.none(len(self.numbers)),
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.numbers,
            self.image_embeddings.to(device, non_blocking=True),
            self.low_res_masks.to(device, non_blocking=True),
            self.weight.to(device, non_blocking=True),
            self.prompts.to(device),
        )


def collate(items: Sequence[TrainingItem]) -> Batch:
    """Items as one ragged batch for one call of the decoder; use it as a DataLoader's ``collate_fn``."""
    counts = [len(item.low_res_masks) for item in items]
    return Batch(
        numbers=tuple(item.number for item in items),
        image_embeddings=torch.stack([item.image_embedding for item in items]),
        low_res_masks=torch.cat([item.low_res_masks for item in items]),
        weight=torch.cat(
            [item.weight[None].expand(n, -1, -1) for item, n in zip(items, counts, strict=True)]
        ),
        prompts=collate_prompts([item.prompts for item in items], counts),
    )


@dataclass(frozen=True, eq=False)
class _Known:
    """A tile's objects, and where its labels count; None: everywhere."""

    table: ObjectTable
    supervised: npt.NDArray[np.bool_] | None

    @classmethod
    def of(cls, labels: Labels, tile: Tile, objects: str) -> _Known:
        """Read from the labels."""
        counted = labels.supervised(tile)
        supervised = None if counted.all() else counted
        return cls(object_table(labels.crop(tile), supervised, objects), supervised)

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + (0 if self.supervised is None else self.supervised.nbytes)


class EmbeddingDataset(Dataset[TrainingItem]):
    """A torch dataset of a store's labelled tiles, for the trainer and for one's own loop.

    Parameters
    ----------
    store : EmbeddingStore
    labels : path or Labels
        Opened by :func:`~embedcache.train.labels.open_labels` when a path.
    prompts : str, optional
        A kind of :mod:`embedcache.train.prompts`; default: none for semantic labels, box for instances.
    tiles : sequence of int, optional
        Tile numbers; default: all encoded tiles that the labels touch. For prompted objects, tiles without
        any object are left out.
    task : "auto", "semantic" or "instances"
        How to read a path's values.
    objects : "whole", "components" or "ids", optional
        Default: ids for prompted instances, else whole.
    max_objects : int
        At most this many objects of a tile, drawn anew each epoch.
    seed : int
        With the epoch, the store and the tile's number it decides everything random.
    store_index : int
        Tells stores of one run apart: equal tile numbers of two of them draw differently.
    rounds : int
        How often an ``iterative`` query is asked; the other kinds are asked once.
    views : bool
        Draw one of the committed views of a tile in each epoch, rather than view 0 always.
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
        store_index: int = 0,
        rounds: int = 1,
        views: bool = False,
        free_share: float = 0.0,
    ) -> None:
        self.store = store
        self.labels = labels if isinstance(labels, Labels) else open_labels(labels, store, task=task)
        kind = self.labels.kind
        self.prompts = check_prompts(prompts or ("none" if kind == "semantic" else "box"))
        self.objects = check_objects(objects or default_objects(kind, self.prompts), kind, self.prompts)
        self.max_objects = max_objects
        self.seed = seed
        self.epoch = 0
        self.tiles = self._choose(tiles)
        self.store_index, self.views = store_index, views
        self.rounds = rounds if self.prompts == "iterative" else 1
        self.free_share = free_share
        self._remembered: OrderedDict[Tile, _Known] = OrderedDict()
        self._remembered_bytes = 0
        self._lock = threading.Lock()
        self._reader: Any = None

    def _choose(self, tiles: Sequence[int] | npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
        if tiles is None:
            touched = self.labels.tiles(self.store)
            chosen = touched[self.store.committed[touched]]
        else:
            chosen = np.asarray(tiles, dtype=np.int64)
            if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self.store):
                raise ConfigError(
                    f"Tile numbers {chosen.min()} to {chosen.max()} were given; {len(self.store)} exist."
                )
            absent = chosen[~self.store.committed[chosen]]
            if len(absent):
                raise MissingTilesError(
                    f"{len(absent)} of {len(chosen)} tiles are not in {self.store.path}, "
                    f"the first is number {absent[0]}."
                )
        if self.objects != "whole":
            chosen = chosen[self.labels.positive(self.store, chosen) > 0]
        if len(chosen) == 0:
            raise LabelError(f"No encoded tile of {self.store.path} is labelled by {self.labels.source}.")
        return chosen

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
        question = self.question(number, epoch)
        return TrainingItem(
            number=question.number,
            tile=question.tile,
            image_embedding=embedding,
            low_res_masks=question.targets.float(),
            weight=question.weight.float(),
            prompts=question.prompts,
        )

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
        rng = self._rng(number, epoch)  # the order of the draws below is part of what a seed means
        read = self._view(number, rng)
        begins_with_box, free = bool(rng.random() >= 0.5), bool(rng.random() < self.free_share)
        tile = self.store.tile(read)
        known = self._known(number)
        objects = known.table.draw(self.max_objects, rng)
        prompts = make_prompts(self.prompts, objects, tile, rng, known.supervised)
        speaks = plan_rounds(self.rounds, rng)
        draws = torch.from_numpy(rng.random((len(objects), len(speaks))))
        supervised = None if known.supervised is None else see(known.supervised, tile.view)
        pieces = [thing.seen(tile.view) for thing in (*objects, known.table.whole())]
        targets, weight = low_res_targets(pieces, supervised, tile)
        return TileQuestion(
            key=TileKey(self.store_index, number),
            number=read,
            tile=tile.seen,
            targets=torch.from_numpy(targets[:-1]),
            whole=torch.from_numpy(targets[-1]),
            weight=torch.from_numpy(weight),
            prompts=prompts,
            begins_with_box=begins_with_box,
            free=free,
            draws=draws,
            speaks=speaks,
        )

    def masks(
        self, number: int, rng: np.random.Generator, limit: int | None = None
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Objects of a tile, bool (P, height, width) with P ≥ 1, and where labels count, (height, width)."""
        known = self._known(number)
        masks = np.stack([thing.mask() for thing in known.table.draw(limit or self.max_objects, rng)])
        supervised = known.supervised
        return masks, np.ones(masks.shape[1:], np.bool_) if supervised is None else supervised

    def _rng(self, number: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, self.store_index, number])

    def _view(self, number: int, rng: np.random.Generator) -> int:
        """Draw one of a base tile's committed views; the draw is made even where there is no choice."""
        draw = rng.random()
        if not self.views:
            return number
        found = sorted(self.store.views_of(number).items())
        return found[int(draw * len(found))][1]

    def _known(self, number: int) -> _Known:
        """What is remembered of a tile; as much as fits into a budget is kept, the oldest goes."""
        tile = self.store.tile(number)
        key = self.labels.key(tile)
        with self._lock:
            known = self._remembered.get(key)
            if known is not None:
                self._remembered.move_to_end(key)
                return known
        known = _Known.of(self.labels, tile, self.objects)  # outside of the lock: other threads go on
        with self._lock:
            if key not in self._remembered:
                self._remembered[key] = known
                self._remembered_bytes += known.nbytes
            while self._remembered_bytes > REMEMBERED_BYTES and len(self._remembered) > 1:
                self._remembered_bytes -= self._remembered.popitem(last=False)[1].nbytes
        return known

    def __getstate__(self) -> dict[str, Any]:
        """What a DataLoader's worker gets: no open files, no locks."""
        state = self.__dict__.copy()
        state.update(_reader=None, _lock=None, _remembered=OrderedDict(), _remembered_bytes=0)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
