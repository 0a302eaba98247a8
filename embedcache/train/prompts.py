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
========== ===================================================== =======

*Oracle* prompts are derived from the truth: figures got with them describe interactive use, in which a person
gives the prompt. Figures that stand for an unattended run over a volume need a *free* source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import ConfigError
from embedcache.geometry import IMAGE_SIZE, Tile
from embedcache.sam.decoder import Prompts

PROMPTS = ("none", "points", "box", "grid", "iterative")

GRID_SIDE = 8
BOX_NOISE = 0.1
BOX_NOISE_PIXELS = 20.0

Masks = npt.NDArray[np.bool_]


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
    """

    point_coords: npt.NDArray[np.float32] | None = None
    point_labels: npt.NDArray[np.int32] | None = None
    boxes: npt.NDArray[np.float32] | None = None


def prompt_source(prompts: str) -> Literal["free", "oracle"]:
    """``free`` when a prompt kind knows nothing of the truth, ``oracle`` when it is derived from it."""
    return "free" if check_prompts(prompts) in ("none", "grid:free") else "oracle"


def check_prompts(prompts: str) -> str:
    """Return ``prompts`` when it is a known kind; raise :class:`ConfigError` otherwise."""
    if prompts not in (*PROMPTS, "grid:free"):
        raise ConfigError(f"--prompts is {prompts!r}; it must be one of {', '.join(PROMPTS)}.")
    return prompts


def make_prompts(prompts: str, masks: Masks, tile: Tile, rng: np.random.Generator) -> TilePrompts:
    """First prompts of a tile's objects.

    Parameters
    ----------
    prompts : str
        One of the kinds above; for ``iterative`` both a point and a box are drawn, and the loop takes one.
    masks : bool (P, height, width)
        Objects in tile px.
    tile : Tile
        Gives the frame.
    rng : Generator
        All randomness comes from it.
    """
    if prompts == "none":
        return TilePrompts()
    if prompts in ("grid", "grid:free"):
        return _grid(masks, tile, signed=prompts == "grid")
    coords, labels = sample_points(masks, tile, rng)
    boxes = jittered_boxes(masks, tile, rng)
    if prompts == "points":
        return TilePrompts(coords, labels)
    if prompts == "box":
        return TilePrompts(boxes=boxes)
    return TilePrompts(coords, labels, boxes)


def sample_points(
    masks: Masks, tile: Tile, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """One point drawn uniformly inside each mask; an empty mask gets one point outside, labelled 0.

    Returns
    -------
    float32 (P, 1, 2), int32 (P, 1)
    """
    coords = np.zeros((len(masks), 1, 2))
    labels = np.ones((len(masks), 1), np.int32)
    for index, mask in enumerate(masks):
        inside = np.flatnonzero(mask)
        if len(inside) == 0:
            inside, labels[index, 0] = np.arange(mask.size), 0
        y, x = divmod(int(rng.choice(inside)), mask.shape[1])
        coords[index, 0] = x, y
    return tile.to_frame(coords), labels


def jittered_boxes(masks: Masks, tile: Tile, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """SAM's noisy boxes: tight, each side moved by a normal of 10 % of the box's side, at most 20 px.

    Returns
    -------
    float32 (P, 4)
        xyxy in pixels of the 1024 frame, inside the tile's content; an empty mask gets the whole tile.
    """
    height, width = tile.input_size
    boxes = np.zeros((len(masks), 4), np.float32)
    for index, mask in enumerate(masks):
        tight = tile.boxes_to_frame(_tight_box(mask))
        sides = np.array([tight[2] - tight[0], tight[3] - tight[1]] * 2)
        noise = np.clip(rng.normal(0.0, 1.0, 4) * sides * BOX_NOISE, -BOX_NOISE_PIXELS, BOX_NOISE_PIXELS)
        moved = np.clip(tight + noise, 0, [width, height, width, height])
        boxes[index] = [*np.minimum(moved[:2], moved[2:]), *np.maximum(moved[:2], moved[2:])]
    return boxes


def _tight_box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, mask.shape[1], mask.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _grid(masks: Masks, tile: Tile, *, signed: bool) -> TilePrompts:
    """SAM's ``build_point_grid`` (half-offset) over the tile's content, the same points for each object."""
    steps = (np.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    x, y = (axis.ravel() for axis in np.meshgrid(steps * tile.width, steps * tile.height))
    coords = np.broadcast_to(tile.to_frame(np.stack([x, y], axis=-1)), (len(masks), GRID_SIDE**2, 2)).copy()
    labels = np.ones(coords.shape[:2], np.int32)
    if signed:
        labels = masks[:, y.astype(int), x.astype(int)].astype(np.int32)
    return TilePrompts(coords, labels)


def collate_prompts(prompts: Sequence[TilePrompts], counts: Sequence[int]) -> Prompts:
    """Prompts of several tiles as one ragged batch: counts per image, shorter point lists padded with −1.

    Parameters
    ----------
    prompts : sequence of TilePrompts
        One per image, all of one kind.
    counts : sequence of int
        Objects of each image, each at least 1; without any prompt each image is asked once.
    """
    points = [item.point_coords for item in prompts if item.point_coords is not None]
    labels = [item.point_labels for item in prompts if item.point_labels is not None]
    boxes = [item.boxes for item in prompts if item.boxes is not None]
    most = max((array.shape[1] for array in points), default=0)
    return Prompts(
        counts=tuple(counts),
        point_coords=torch.from_numpy(np.concatenate([_pad(a, most, 0) for a in points])) if points else None,
        point_labels=torch.from_numpy(np.concatenate([_pad(a, most, -1) for a in labels]))
        if labels
        else None,
        boxes=torch.from_numpy(np.concatenate(boxes)) if boxes else None,
        mask_input=None,
    )


def _pad(array: npt.NDArray[np.generic], length: int, value: int) -> npt.NDArray[np.generic]:
    extra = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, extra, constant_values=value) if length > array.shape[1] else array


def first_round(prompts: Prompts, rng: np.random.Generator) -> Prompts:
    """The point or the box of an ``iterative`` batch, whichever the coin shows (SAM: with equal chance)."""
    if prompts.boxes is None or prompts.point_coords is None:
        return prompts
    if rng.random() < 0.5:
        return Prompts(prompts.counts, prompts.point_coords, prompts.point_labels, None, None)
    return Prompts(prompts.counts, None, None, prompts.boxes, None)


def correct(
    prompts: Prompts, low_res_logits: Tensor, targets: Tensor, weight: Tensor, rng: np.random.Generator
) -> Prompts:
    """The next round: one more point per object from where the answer is wrong, and the answer as mask prompt.

    Parameters
    ----------
    prompts : Prompts
        The round before, Q queries.
    low_res_logits : (Q, 1, 256, 256)
        Its answer; no gradient flows through it.
    targets : (Q, 256, 256)
    weight : (Q, 256, 256)
        Points are drawn only where it is positive.
    rng : Generator
        Draws the points.
    """
    answer = low_res_logits.detach()
    wrong = ((answer[:, 0] > 0) != (targets > 0.5)) & (weight > 0)
    cells = [
        _draw_cell(w, torch.as_tensor(k), rng) for w, k in zip(wrong.cpu(), weight.cpu() > 0, strict=True)
    ]
    index = torch.tensor(cells, device=answer.device)
    y, x = index // wrong.shape[2], index % wrong.shape[2]
    cell = IMAGE_SIZE // wrong.shape[1]
    coords = torch.stack([x, y], dim=-1)[:, None].float() * cell + (cell - 1) / 2
    labels = targets[torch.arange(len(cells), device=answer.device), y, x].round().to(torch.int32)[:, None]
    if prompts.point_coords is not None and prompts.point_labels is not None:
        coords = torch.cat([prompts.point_coords, coords], dim=1)
        labels = torch.cat([prompts.point_labels, labels], dim=1)
    return Prompts(prompts.counts, coords, labels, prompts.boxes, answer)


def _draw_cell(wrong: Tensor, counted: Tensor, rng: np.random.Generator) -> int:
    """A wrong cell; where nothing is wrong any counted one, as a person confirming; the first as last resort."""
    for candidates in (wrong, counted):
        cells = torch.nonzero(candidates.flatten())[:, 0]
        if len(cells):
            return int(cells[int(rng.integers(len(cells)))])
    return 0
