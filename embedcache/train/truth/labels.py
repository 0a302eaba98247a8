"""Turns label files (zarr, TIFF, PNG folder, one 2-D image) into label crops of a store's tiles.

Labels are read from their files only; the volume that was encoded is never opened. Unlabelled is not
background: planes without a label file, and pixels outside a supervision mask, do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import LabelError, VolumeError
from embedcache.geometry import Tile
from embedcache.store import EmbeddingStore
from embedcache.train.truth.alignment import AlignedPlanes, align
from embedcache.train.truth.task import Task, TaskDecision, decide_task
from embedcache.volume import open_volume

SAMPLED_PIECES = 12


class Labels:
    """Labels laid over the tiles of one store; made by :func:`open_labels`.

    Attributes
    ----------
    kind : "semantic" or "instances"
    source : str
        Path of the label file or folder.
    alignment : str
        What was inferred about sizes, planes and task: one sentence that is printed.
    planes : frozenset of int
        Planes of the store that have a label.
    same_for_all_planes : bool
        One 2-D label lies on all planes.
    ignore : int or None
        Pixels of this value do not count.
    """

    def __init__(
        self,
        aligned: AlignedPlanes,
        decision: TaskDecision,
        supervision: AlignedPlanes | None = None,
        ignore: int | None = None,
    ) -> None:
        self._aligned = aligned
        self._decision = decision
        self._supervision = supervision
        self.ignore = ignore
        self._counts: dict[Tile, tuple[int, int]] = {}
        self.kind: Task = decision.kind
        self.source: str = aligned.volume.source
        self.supervision_source: str | None = supervision.volume.source if supervision else None
        self.planes: frozenset[int] = frozenset(aligned.plane_of) & frozenset(
            supervision.plane_of if supervision else aligned.plane_of
        )
        self.same_for_all_planes: bool = aligned.same_for_all_planes
        parts = [aligned.sentence, decision.sentence]
        if supervision is not None:
            parts.append(f"supervised where {supervision.volume.source} is > 0 ({supervision.sentence})")
        if ignore is not None:
            parts.append(f"pixels of value {ignore} do not count")
        self.alignment: str = "; ".join(parts) + "."

    def crop(self, tile: Tile) -> npt.NDArray[Any]:
        """Labels under a tile, in tile px.

        Returns
        -------
        ndarray (height, width)
            bool for semantic labels, int32 ids (0: background) for instances.
        """
        pixels = _without(self._aligned.read(tile), self.ignore)
        if self.kind == "semantic":
            positive = pixels > self._decision.threshold
            return self._aligned.to_tile(positive, tile, self._counted_pixels(tile))
        ids = self._aligned.to_tile(pixels, tile)
        if ids.dtype.kind == "f" or ids.dtype.itemsize > 4 or ids.dtype == np.uint32:
            ids = _small_ids(ids)
        return ids.astype(np.int32)

    def supervised(self, tile: Tile) -> npt.NDArray[np.bool_]:
        """Where labels count under a tile: bool (height, width) in tile px."""
        if tile.plane not in self.planes:
            return np.zeros((tile.height, tile.width), bool)
        supervised = np.ones((tile.height, tile.width), bool)
        if self._supervision is not None:
            supervised = self._supervision.to_tile(self._supervision.read(tile) > 0, tile)
        counted = self._counted_pixels(tile)
        return supervised if counted is None else supervised & self._aligned.to_tile(counted, tile)

    def _counted_pixels(self, tile: Tile) -> npt.NDArray[np.bool_] | None:
        """Label pixels that are not of the ignored value, at the label's resolution; None: all."""
        return None if self.ignore is None else self._aligned.read(tile) != self.ignore

    def counts(self, tile: Tile) -> tuple[int, int]:
        """``(positive, supervised)`` pixels of a tile; positives count only where supervised. Remembered."""
        key = self.key(tile)
        if key not in self._counts:
            if tile.plane not in self.planes:
                return 0, 0
            supervised = self.supervised(tile)
            total = int(supervised.sum())
            positive = int(((self.crop(tile) > 0) & supervised).sum()) if total else 0
            self._counts[key] = (positive, total)
        return self._counts[key]

    def key(self, tile: Tile) -> Tile:
        """The tile that stands for all with the same labels: one of view 0, and of plane 0 where all are alike."""
        return Tile(0 if self._flat else tile.plane, tile.y0, tile.x0, tile.height, tile.width)

    @property
    def _flat(self) -> bool:
        """Whether all planes have the same labels and supervision, so that one count serves all."""
        return self.same_for_all_planes and (
            self._supervision is None or self._supervision.same_for_all_planes
        )

    def tiles(self, store: EmbeddingStore) -> npt.NDArray[np.int64]:
        """Numbers of the store's tiles that the labels touch: on a labelled plane, and supervised somewhere."""
        numbers = labelled_numbers(store, self.planes)
        if self._supervision is None and self.ignore is None:
            return numbers
        keep = [self.counts(store.tile(int(number)))[1] > 0 for number in numbers]
        return numbers[np.array(keep, dtype=bool)] if keep else numbers

    def uncounted(self, store: EmbeddingStore) -> int:
        """How many tiles on labelled planes are left out because no pixel of them counts."""
        return len(labelled_numbers(store, self.planes)) - len(self.tiles(store))

    def positive(self, store: EmbeddingStore, numbers: Iterable[int]) -> npt.NDArray[np.int64]:
        """Positive pixels of each of the given tiles, in their order."""
        return np.array([self.counts(store.tile(int(number)))[0] for number in numbers], dtype=np.int64)


def open_labels(
    path: str | Path,
    store: EmbeddingStore,
    *,
    supervision: str | Path | None = None,
    task: str = "auto",
    ignore: int | None = None,
) -> Labels:
    """Open labels and lay them over a store's tiles.

    Parameters
    ----------
    path : path
        Zarr, TIFF, PNG folder or a single image: as many planes as the store has, one for all of them, or
        files named as the images. The size is that of the encoded level or differs by an integer factor.
    store : EmbeddingStore
        Whose tiles are labelled.
    supervision : path, optional
        A mask by the same rules; labels count only where it is > 0.
    task : "auto", "semantic" or "instances"
        How to read the values; see :mod:`embedcache.train.truth.task`.
    ignore : int, optional
        Pixels of this value count nowhere: neither as foreground nor as background.

    Raises
    ------
    LabelError
        When the file cannot be read, its size fits no level, or nothing in it is positive.
    """
    _require_other_than_source(path, store)
    aligned = align(_open(path, "label"), store)
    over = align(_open(supervision, "supervision mask"), store, "supervision mask") if supervision else None
    samples = [_without(sample, ignore) for sample in sample_pixels(aligned, store)]
    labels = Labels(aligned, decide_task(samples, task), over, ignore)
    _require_positive(labels, store)
    return labels


def _require_other_than_source(path: str | Path, store: EmbeddingStore) -> None:
    """A volume is grey values, and would be cut into a mask without a word."""
    source = store.provenance.get("source")
    if source is not None and Path(path).expanduser().resolve() == Path(str(source)).expanduser().resolve():
        raise LabelError(
            f"{path} is the volume that {store.path.name} was encoded from, not its labels.",
            hint="Give a mask of the same planes with --labels.",
        )


def labelled_numbers(store: EmbeddingStore, planes: Iterable[int]) -> npt.NDArray[np.int64]:
    """Numbers of a store's base tiles on the given planes; tiles of other views lie where these do."""
    return np.flatnonzero(np.isin(store.table[:, 0], sorted(planes)) & store.base).astype(np.int64)


def _open(path: str | Path, what: str) -> Any:
    try:
        return open_volume(path)
    except VolumeError as error:
        raise LabelError(f"The {what} cannot be opened: {error.message}", hint=error.hint) from error


def sample_pixels(aligned: AlignedPlanes, store: EmbeddingStore) -> Iterator[npt.NDArray[Any]]:
    """Label pixels of some tiles: evenly spread ones, and on until a few with something in them were seen."""
    numbers = labelled_numbers(store, aligned.plane_of)
    if len(numbers) == 0:
        raise LabelError(f"{aligned.volume.source} labels no plane of the store {store.path}.")
    spread = np.unique(np.linspace(0, len(numbers) - 1, SAMPLED_PIECES).astype(int))
    order = [*spread, *np.setdiff1d(np.arange(len(numbers)), spread)]
    seen: set[tuple[int, ...]] = set()
    filled = 0
    for turn, index in enumerate(order):
        if turn >= len(spread) and filled >= 3:
            return
        tile = store.tile(int(numbers[index]))
        region = (aligned.plane_of[tile.plane], tile.y0, tile.x0, tile.height, tile.width)
        if region in seen:
            continue
        seen.add(region)
        pixels = aligned.read(tile)
        filled += bool(pixels.any())
        if turn < len(spread) or pixels.any():
            yield pixels


def _require_positive(labels: Labels, store: EmbeddingStore) -> None:
    numbers = labelled_numbers(store, labels.planes)
    wanted = numbers[store.wanted[numbers]]
    order = np.concatenate([wanted, np.setdiff1d(numbers, wanted)])
    if any(labels.counts(store.tile(int(number)))[0] > 0 for number in order):
        return
    within = f" within {labels.supervision_source}" if labels.supervision_source else ""
    within += f" beside the ignored value {labels.ignore}" if labels.ignore is not None else ""
    raise LabelError(
        f"{labels.source} holds nothing positive{within}: none of its {len(numbers)} tiles has anything to learn "
        f"({labels.alignment})",
        hint="Check that these are the labels of this volume, and that foreground is not 0.",
    )


def _without(pixels: npt.NDArray[Any], ignore: int | None) -> npt.NDArray[Any]:
    """Pixels with 0 in place of the ignored value."""
    return pixels if ignore is None else np.where(pixels == ignore, pixels.dtype.type(0), pixels)


def _small_ids(ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Ids that do not fit int32 as 1, 2, …, background 0; only the equality of ids within a tile matters."""
    values, inverse = np.unique(ids, return_inverse=True)
    positive = np.cumsum(values > 0) * (values > 0)
    return np.asarray(positive[inverse].reshape(ids.shape), dtype=np.int64)
