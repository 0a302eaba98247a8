"""Turns masks into prompts in SAM's own terms, and names where each kind of prompt comes from.

Coordinates are float32 xy **pixels of the 1024 frame**, labels int32 (1 in, 0 out, −1 padding).

========== ===================================================== =======
prompts    is                                                    source
========== ===================================================== =======
none       no prompt: one query per image                        free
grid:free  a regular grid of points, all with label 1            free
grid       the same grid, signed by the truth                    oracle
points     one point inside each object                          oracle
box        a jittered box around each object                     oracle
iterative  a point or box, then points where the answer is wrong oracle
mask       what an earlier training predicted, from a file       free
boxes      boxes of the user's own, from a file                  free
========== ===================================================== =======

*Oracle* prompts are derived from the truth: figures got with them describe interactive use, in which a person
gives the prompt. Figures that stand for an unattended run over a volume need a *free* source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import ConfigError
from embedcache.geometry import Tile, see_boxes, see_points
from embedcache.sam.prompts import PAD_LABEL, Prompts
from embedcache.train.questions.object_table import TileObject

PROMPTS = ("none", "points", "box", "grid", "iterative", "mask", "boxes")

GRID_SIDE = 8
BOX_NOISE = 0.1
BOX_NOISE_PIXELS = 20.0

Masks = npt.NDArray[np.bool_]

FREE_SHARE = 0.5
"""Share of tiles that a semantic training with oracle prompts asks without any, as validation asks."""


@dataclass(frozen=True)
class TilePrompts:
    """Prompts of one tile's P objects.

    Parameters
    ----------
    point_coords : float32 (P, N, 2) or None
        xy in pixels of the 1024 frame.
    point_labels : int32 (P, N) or None
        1 in, 0 out, −1 padding.
    boxes : float32 (P, 4) or None
        xyxy in pixels of the 1024 frame.
    masks : float32 (P, 256, 256) or None
        Logits.
    """

    point_coords: npt.NDArray[np.float32] | None = None
    point_labels: npt.NDArray[np.int32] | None = None
    boxes: npt.NDArray[np.float32] | None = None
    masks: npt.NDArray[np.float32] | None = None

    def one_of(self, *, box: bool) -> TilePrompts:
        """The boxes or the points where there are both, else what there is."""
        if self.boxes is None or self.point_coords is None:
            return self
        return replace(self, point_coords=None, point_labels=None) if box else replace(self, boxes=None)


def prompt_source(prompts: str) -> Literal["free", "oracle"]:
    """``free`` when a prompt kind knows nothing of the truth, ``oracle`` when it is derived from it."""
    return "free" if check_prompts(prompts) in ("none", "grid:free", "mask", "boxes") else "oracle"


def check_prompts(prompts: str) -> str:
    """Return ``prompts`` when it is a known kind; raise :class:`ConfigError` otherwise."""
    if prompts not in (*PROMPTS, "grid:free"):
        raise ConfigError(f"--prompts is {prompts!r}; it must be one of {', '.join(PROMPTS)}.")
    return prompts


def make_prompts(
    prompts: str,
    masks: Sequence[TileObject] | Masks,
    tile: Tile,
    rng: np.random.Generator,
    supervised: Masks | None = None,
) -> TilePrompts:
    """First prompts of a tile's objects.

    Parameters
    ----------
    prompts : str
        One of the kinds above; for ``iterative`` both a point and a box are drawn, and one of them is asked.
    masks : P objects, or bool (P, height, width)
        In tile px, before the tile's view.
    tile : Tile
        Gives the frame; a view moves the prompts as it moves the pixels.
    rng : Generator
        All randomness comes from it.
    supervised : bool (height, width), optional
        Where a point may lie that stands for an empty object; default: everywhere.
    """
    objects = [TileObject.of_mask(mask) for mask in masks] if isinstance(masks, np.ndarray) else masks
    if prompts == "none":
        return TilePrompts()
    if prompts == "mask":
        raise ConfigError(
            "Prompts of kind mask need earlier predictions to start from.", hint="Give --start."
        )
    if prompts == "boxes":
        raise ConfigError("Prompts of kind boxes are boxes of a user's file.", hint="Give --boxes.")
    if prompts in ("grid", "grid:free"):
        return _grid(objects, tile, signed=prompts == "grid")
    coords, labels = sample_points(objects, tile, rng, supervised)
    boxes = jittered_boxes(objects, tile, rng)
    if prompts == "points":
        return TilePrompts(coords, labels)
    if prompts == "box":
        return TilePrompts(boxes=boxes)
    return TilePrompts(coords, labels, boxes)


def sample_points(
    objects: Sequence[TileObject], tile: Tile, rng: np.random.Generator, supervised: Masks | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """One point drawn uniformly inside each object; an empty one gets a point outside, labelled 0.

    Returns
    -------
    float32 (P, 1, 2), int32 (P, 1)
    """
    coords = np.zeros((len(objects), 1, 2))
    labels = np.ones((len(objects), 1), np.int32)
    for index, thing in enumerate(objects):
        (top, left), piece = thing.corner, thing.inside
        places = np.flatnonzero(piece)
        if len(places) == 0:
            labels[index, 0] = 0
            top, left, piece = 0, 0, np.ones(thing.size, np.bool_) if supervised is None else supervised
            places = np.flatnonzero(piece)
        drawn = int(rng.integers(max(1, len(places))))
        y, x = divmod(int(places[drawn]) if len(places) else 0, piece.shape[1])
        coords[index, 0] = left + x, top + y
    return tile.to_frame(see_points(coords, (tile.height, tile.width), tile.view)), labels


def jittered_boxes(
    objects: Sequence[TileObject], tile: Tile, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """SAM's noisy boxes: tight, each side moved by a normal of 10 % of the box's side, at most 20 px.

    Returns
    -------
    float32 (P, 4)
        xyxy in pixels of the 1024 frame, inside the tile's content; an empty object gets the whole tile.
    """
    height, width = tile.input_size
    boxes = np.zeros((len(objects), 4), np.float32)
    for index, thing in enumerate(objects):
        tight = tile.boxes_to_frame(see_boxes(_tight_box(thing), thing.size, tile.view))
        boxes[index] = noisy_box(tight, (height, width), rng)
    return boxes


def noisy_box(
    box: npt.NDArray[np.float32], size: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """SAM's noise on one box of the 1024 frame, xyxy (4,): it stays inside the content's height and width."""
    height, width = size
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    noise = np.clip(rng.normal(0.0, 1.0, 4) * sides * BOX_NOISE, -BOX_NOISE_PIXELS, BOX_NOISE_PIXELS)
    moved = np.clip(box + noise, 0, [width, height, width, height])
    return np.array([*np.minimum(moved[:2], moved[2:]), *np.maximum(moved[:2], moved[2:])], dtype=np.float32)


def _tight_box(thing: TileObject) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(thing.inside.any(axis=1)), np.flatnonzero(thing.inside.any(axis=0))
    if len(rows) == 0:
        return 0, 0, thing.size[1], thing.size[0]
    y, x = thing.corner
    return x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1


def _grid(objects: Sequence[TileObject], tile: Tile, *, signed: bool) -> TilePrompts:
    """SAM's ``build_point_grid`` (half-offset) over the tile's content, the same points for each object."""
    seen = tile.seen
    steps = (np.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    x, y = (axis.ravel() for axis in np.meshgrid(steps * seen.width, steps * seen.height))
    frame = tile.to_frame(np.stack([x, y], axis=-1))
    coords = np.broadcast_to(frame, (len(objects), GRID_SIDE**2, 2)).copy()
    labels = np.ones(coords.shape[:2], np.int32)
    if signed:
        masks = np.stack([thing.seen(tile.view).mask() for thing in objects])
        labels = masks[:, y.astype(int), x.astype(int)].astype(np.int32)
    return TilePrompts(coords, labels)


def collate_prompts(prompts: Sequence[TilePrompts], counts: Sequence[int]) -> Prompts:
    """Prompts of several tiles as one ragged batch: each row says how many points it has and whether a box.

    Parameters
    ----------
    prompts : sequence of TilePrompts
        One per image; what one of them lacks takes no part in its rows.
    counts : sequence of int
        Objects of each image, each at least 1; without any prompt each image is asked once.
    """
    points = [0 if item.point_coords is None else item.point_coords.shape[1] for item in prompts]
    boxed = [item.boxes is not None for item in prompts]
    most = max(points)
    coords = [_rows(item.point_coords, (n, most, 2), 0) for item, n in zip(prompts, counts, strict=True)]
    labels = [_rows(item.point_labels, (n, most), PAD_LABEL) for item, n in zip(prompts, counts, strict=True)]
    boxes = [_rows(item.boxes, (n, 4), 0) for item, n in zip(prompts, counts, strict=True)]
    masks = [item.masks[:, None] for item in prompts if item.masks is not None]
    return Prompts(
        counts=tuple(counts),
        point_coords=_joined(coords) if most else None,
        point_labels=_joined(labels).to(torch.int32) if most else None,
        boxes=_joined(boxes) if any(boxed) else None,
        mask_input=_joined(masks) if masks else None,
        point_counts=torch.tensor(np.repeat(points, counts)) if min(points) < most else None,
        has_box=torch.tensor(np.repeat(boxed, counts)) if any(boxed) and not all(boxed) else None,
    )


def _rows(array: npt.NDArray[Any] | None, shape: tuple[int, ...], value: int) -> npt.NDArray[np.float32]:
    """An array in the first places of a larger one."""
    rows = np.full(shape, value, np.float32)
    if array is not None:
        rows[:, : array.shape[1]] = array
    return rows


def _joined(arrays: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
