"""Turns boxes that a user drew into prompts of a store's tiles: cut to each tile, moved into its frame."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, counted
from embedcache.geometry import Tile, see_boxes
from embedcache.store import EmbeddingStore
from embedcache.train.questions.box_files import read_boxes
from embedcache.train.questions.box_places import lay_boxes
from embedcache.train.questions.prompts import TilePrompts

Boxes = npt.NDArray[np.float64]

LEAST_SHARE = 0.1
"""A piece of a box is asked for in a tile when it is this share of the box, or of the tile."""


class BoxPrompts:
    """A user's boxes on a store's planes; made by :func:`open_boxes`.

    Attributes
    ----------
    source : str
        Path of the file.
    alignment : str
        How they lie on the planes; one sentence.
    count : int
        How many boxes there are.
    """

    def __init__(self, source: str, of_plane: dict[int, Boxes], alignment: str) -> None:
        self.source, self.alignment = source, alignment
        self.count = sum(len(boxes) for boxes in of_plane.values())
        self._of_plane = of_plane

    def of_plane(self, plane: int) -> Boxes:
        """The boxes of a plane, in the order of the file: float64 (P, 4), xyxy edges in px of the plane."""
        return self._of_plane.get(plane, np.zeros((0, 4)))

    def of_tile(self, tile: Tile) -> Boxes:
        """What of the boxes lies in a tile, as it lies: float64 (P, 4), xyxy edges in tile px.

        Pieces that are less than a tenth of their box are left out, unless they are a tenth of the tile: what
        they cut is asked for where more of it is seen.
        """
        boxes = self.of_plane(tile.plane)
        corner, size = [tile.x0, tile.y0] * 2, [tile.width, tile.height] * 2
        cut = np.clip(boxes - corner, 0, size)
        piece = _area(cut)
        shown = (piece > 0) & (piece >= LEAST_SHARE * np.minimum(_area(boxes), tile.height * tile.width))
        return cut[shown]

    def for_frame(self, tile: Tile, boxes: Boxes | None = None) -> TilePrompts:
        """Boxes of a tile as prompts of the tile as seen, in the 1024 frame.

        Parameters
        ----------
        tile : Tile
            Its view moves the boxes as it moves the pixels.
        boxes : float64 (P, 4), optional
            In tile px, as the tile lies; default: all of :meth:`of_tile`.
        """
        boxes = self.of_tile(tile) if boxes is None else boxes
        return TilePrompts(boxes=to_frame(boxes, tile))

    def tiles(self, store: EmbeddingStore, numbers: Iterable[int]) -> npt.NDArray[np.int64]:
        """Those of the tiles that have a box."""
        return np.array([n for n in numbers if len(self.of_tile(store.tile(int(n))))], dtype=np.int64)


def to_frame(boxes: Boxes, tile: Tile) -> npt.NDArray[np.float32]:
    """Edges in tile px (P, 4), as the tile lies, to the 1024 frame of the tile as seen."""
    height, width = tile.input_size
    frame = tile.boxes_to_frame(see_boxes(boxes, (tile.height, tile.width), tile.view))
    return np.asarray(np.clip(frame, 0, [width, height, width, height]), dtype=np.float32)


def _area(boxes: Boxes) -> npt.NDArray[np.float64]:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def open_boxes(path: str | Path, store: EmbeddingStore) -> BoxPrompts:
    """Read a file of boxes and lay them on a store's planes.

    Images are found by their name in the store, or else by its stem. Coordinates are pixels of the level that was
    encoded.

    Parameters
    ----------
    path : path
        See :mod:`embedcache.train.questions.box_files`.
    store : EmbeddingStore

    Raises
    ------
    LabelError
        When it cannot be read, images or planes are not the store's, or a box lies beyond its plane.
    """
    boxes = read_boxes(path)
    of_plane: dict[int, list[tuple[float, float, float, float]]] = {}
    for box, plane in zip(boxes, lay_boxes(path, boxes, store, _count(store), "the store"), strict=True):
        of_plane.setdefault(plane, []).append((box.x0, box.y0, box.x1, box.y1))
    laid = {}
    for plane, listed in sorted(of_plane.items()):
        height, width = store.plane_size(plane)
        laid[plane] = np.clip(np.array(listed, dtype=np.float64), 0, [width, height, width, height])
    sentence = f"{len(boxes)} boxes" if len(boxes) > 1 else "1 box"
    return BoxPrompts(str(path), laid, f"{sentence} on {len(laid)} of {counted(_count(store), 'plane')}")


def require_boxes(boxes: BoxPrompts | None) -> BoxPrompts:
    """The boxes of prompts of kind boxes.

    Raises
    ------
    ConfigError
        When there are none.
    """
    if boxes is None:
        raise ConfigError(
            "--prompts boxes needs boxes to ask with, and none are given.",
            hint="Give them with --boxes FILE.csv (image,x0,y0,x1,y1), or COCO JSON.",
        )
    return boxes


def _count(store: EmbeddingStore) -> int:
    return len(store.images) or int(np.asarray(store.table)[:, 0].max(initial=-1)) + 1
