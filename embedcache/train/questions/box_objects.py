"""Turns boxes of a tile and the table of its objects into what each box asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.geometry import IMAGE_SIZE, LOW_RES_SIZE, Tile
from embedcache.train.questions.box_prompts import BoxPrompts, to_frame
from embedcache.train.questions.object_table import ObjectTable, TileObject
from embedcache.train.questions.prompts import TilePrompts, noisy_box


def boxed_object(table: ObjectTable, box: npt.NDArray[np.float64], objects: str) -> TileObject:
    """What a box asks for.

    Parameters
    ----------
    table : ObjectTable
        Of the tile.
    box : float64 (4,)
        xyxy edges in tile px, as the tile lies.
    objects : "whole", "components" or "ids"
        ``whole``: everything positive inside the box; else the object that has most pixels inside it, all of it.
        A box without anything asks for nothing.
    """
    height, width = table.labels.shape
    rows, columns = _pixels(box[1], box[3], height), _pixels(box[0], box[2], width)
    inside = table.labels[rows, columns]
    if objects != "whole":
        counts = np.bincount(inside.ravel(), minlength=len(table) + 1)[1 : len(table) + 1]
        if counts.any():
            return table.object(int(counts.argmax()) + 1)
        inside = np.zeros_like(inside)
    return TileObject(inside > 0, (rows.start, columns.start), (height, width))


def _pixels(start: float, end: float, length: int) -> slice:
    """Pixels whose middle lies between two edges; at least the one that the span lies in."""
    first = min(max(0, int(np.ceil(start - 0.5))), length - 1)
    return slice(first, max(first + 1, min(length, int(np.ceil(end - 0.5)))))


@dataclass(frozen=True, eq=False)
class TileBoxes:
    """The boxes that a tile is asked with.

    Parameters
    ----------
    lying : float64 (P, 4)
        xyxy edges in tile px, as the tile lies.
    frame : float32 (P, 4)
        The same in the 1024 frame of the tile as seen.
    """

    lying: npt.NDArray[np.float64]
    frame: npt.NDArray[np.float32]

    @classmethod
    def draw(cls, boxes: BoxPrompts, tile: Tile, limit: int, rng: np.random.Generator) -> TileBoxes:
        """At most ``limit`` of a tile's boxes, drawn where there are more, in their order."""
        lying = boxes.of_tile(tile)
        if len(lying) > limit:
            lying = lying[np.sort(rng.choice(len(lying), size=limit, replace=False))]
        return cls(lying, to_frame(lying, tile))

    def objects(self, table: ObjectTable, objects: str) -> list[TileObject]:
        """What each box asks for; see :func:`boxed_object`."""
        return [boxed_object(table, box, objects) for box in self.lying]

    def shown(
        self, objects: list[TileObject], targets: npt.NDArray[np.uint8], weight: npt.NDArray[np.uint8]
    ) -> list[int]:
        """Which boxes are asked: those that hold a cell that counts, but for objects too small for a cell.

        Parameters
        ----------
        objects : list of TileObject
            What the boxes ask for, P first; what follows is of no interest.
        targets : uint8 (P or more, 256, 256)
            Of these.
        weight : uint8 (256, 256)

        Returns
        -------
        list of int
            All P where none would be left.
        """
        step = IMAGE_SIZE // LOW_RES_SIZE
        kept = []
        for place, box in enumerate(self.frame):
            x0, y0 = (box[:2] // step).astype(int)
            x1, y1 = np.ceil(box[2:] / step).astype(int)
            too_small = bool(objects[place].inside.any()) and not targets[place].any()
            if weight[y0:y1, x0:x1].any() and not too_small:
                kept.append(place)
        return kept or list(range(len(self.frame)))

    def prompts(self, chosen: list[int], tile: Tile, jitter: np.random.Generator | None) -> TilePrompts:
        """The chosen boxes as prompts; with a generator each is moved a little, as SAM's are in training."""
        boxes = self.frame[chosen]
        if jitter is not None:
            boxes = np.stack([noisy_box(box, tile.input_size, jitter) for box in boxes])
        return TilePrompts(boxes=boxes)
