"""Turns label files (zarr, TIFF, PNG folder, one 2-D image) into label crops of a store's tiles.

Labels are read from their files only; the volume that was encoded is never opened. Unlabelled is not
background: planes without a label file, and pixels outside a supervision mask, do not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import LabelError, VolumeError
from embedcache.geometry import Tile
from embedcache.remote import is_remote
from embedcache.store import EmbeddingStore
from embedcache.train.truth.alignment import LABEL_MEMORY, AlignedPlanes, align
from embedcache.train.truth.flat_stack import is_ink
from embedcache.train.truth.label_pixels import labelled_numbers, sample_pixels, small_ids, without
from embedcache.train.truth.task import Task, TaskDecision, decide_task
from embedcache.volume import open_volume

__all__ = ["Labels", "labelled_numbers", "open_labels", "sample_pixels"]


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
    supervision_source, validation_source : str or None
        Paths of the masks.
    """

    def __init__(
        self,
        aligned: AlignedPlanes,
        decision: TaskDecision,
        supervision: AlignedPlanes | None = None,
        ignore: int | None = None,
        *,
        validation: AlignedPlanes | None = None,
        within: bool = False,
    ) -> None:
        self._aligned = aligned
        self._decision = decision
        self._supervision = supervision
        self._validation = validation
        self._within = within
        self.ignore = ignore
        self._counts: dict[Tile, tuple[int, int]] = {}
        self.kind: Task = decision.kind
        self.source: str = aligned.volume.source
        self.supervision_source: str | None = supervision.volume.source if supervision else None
        self.validation_source: str | None = validation.volume.source if validation else None
        self.planes: frozenset[int] = frozenset(aligned.plane_of)
        for mask in self._masks:
            self.planes &= frozenset(mask.plane_of)
        self.same_for_all_planes: bool = aligned.same_for_all_planes
        parts = [aligned.sentence, decision.sentence]
        if supervision is not None:
            parts.append(f"supervised where {supervision.volume.source} is > 0 ({supervision.sentence})")
        if validation is not None:
            parts.append(f"held out where {validation.volume.source} is > 0 ({validation.sentence})")
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
        pixels = without(self._aligned.read(tile), self.ignore)
        if self.kind == "semantic":
            positive = pixels > self._decision.threshold
            return self._aligned.to_tile(positive, tile, self._counted_pixels(tile))
        ids = self._aligned.to_tile(pixels, tile)
        if ids.dtype.kind == "f" or ids.dtype.itemsize > 4 or ids.dtype == np.uint32:
            ids = small_ids(ids)
        return ids.astype(np.int32)

    def supervised(self, tile: Tile) -> npt.NDArray[np.bool_]:
        """Where labels count under a tile: bool (height, width) in tile px."""
        if tile.plane not in self.planes:
            return np.zeros((tile.height, tile.width), bool)
        supervised = np.ones((tile.height, tile.width), bool)
        for mask in self._masks:
            supervised &= mask.to_tile(mask.read(tile) > 0, tile)
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
        return self.same_for_all_planes and all(mask.same_for_all_planes for mask in self._masks)

    @property
    def _masks(self) -> tuple[AlignedPlanes, ...]:
        """What must be positive where labels count."""
        return tuple(filter(None, (self._supervision, self._validation if self._within else None)))

    def validating(self) -> Labels:
        """The same labels, counting only within the validation mask; themselves where there is none."""
        if self._validation is None or self._within:
            return self
        parts = (self._aligned, self._decision, self._supervision, self.ignore)
        return Labels(*parts, validation=self._validation, within=True)

    def held_out(self, tile: Tile) -> bool:
        """Whether a tile touches the validation mask."""
        mask = self._validation
        return mask is not None and tile.plane in mask.plane_of and bool((mask.read(tile) > 0).any())

    def tiles(self, store: EmbeddingStore) -> npt.NDArray[np.int64]:
        """Numbers of the store's tiles that the labels touch: on a labelled plane, and supervised somewhere."""
        numbers = labelled_numbers(store, self.planes)
        if not self._masks and self.ignore is None:
            return numbers
        keep = [self.counts(store.tile(int(number)))[1] > 0 for number in numbers]
        return np.asarray(numbers[np.array(keep, dtype=bool)])

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
    validation: str | Path | None = None,
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
    validation : path, optional
        A mask by the same rules; what it touches is held out of training.
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
    over = _mask(supervision, store, "supervision mask")
    held = _mask(validation, store, "validation mask")
    samples = [without(sample, ignore) for sample in sample_pixels(aligned, store)]
    decision = decide_task(samples, task, ink=is_ink(aligned.volume.source))
    labels = Labels(aligned, decision, over, ignore, validation=held)
    _require_positive(labels, store)
    return labels


def _require_other_than_source(path: str | Path, store: EmbeddingStore) -> None:
    """A volume is grey values, and would be cut into a mask without a word."""
    source = str(store.provenance.get("source") or "")
    if source and _place(str(path)) == _place(source):
        raise LabelError(
            f"{path} is the volume that {store.path.name} was encoded from, not its labels.",
            hint="Give a mask of the same planes with --labels.",
        )


def _place(path: str) -> str:
    """The one name of a path, or of an address."""
    return path.rstrip("/") if is_remote(path) else str(Path(path).expanduser().resolve())


def _mask(path: str | Path | None, store: EmbeddingStore, what: str) -> AlignedPlanes | None:
    return None if path is None else align(_open(path, what), store, what)


def _open(path: str | Path, what: str) -> Any:
    try:
        return open_volume(path, read_memory=LABEL_MEMORY)
    except VolumeError as error:
        raise LabelError(f"The {what} cannot be opened: {error.message}", hint=error.hint) from error


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
