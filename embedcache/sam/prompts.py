"""Turns points, boxes and masks of several images into one checked batch of prompts, ragged over the images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from embedcache.errors import InputError
from embedcache.geometry import IMAGE_SIZE, LOW_RES_SIZE

PAD_LABEL = -1
"""Label of a point that is no point, which is a token of its own in SAM; a shorter row says so by its count."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Q prompts of B images, image by image, in the 1024 frame.

    Parameters
    ----------
    counts : tuple of int
        Prompts of each image, each at least 1; their sum is Q.
    point_coords : Tensor, optional
        ``(Q, N, 2)`` float32, (x, y) pixels of the 1024 frame.
    point_labels : Tensor, optional
        ``(Q, N)`` int32: 1 in, 0 out, −1 SAM's own "no point", which takes part. With ``point_coords`` only.
    boxes : Tensor, optional
        ``(Q, 4)`` float32, x0, y0, x1, y1.
    mask_input : Tensor, optional
        ``(Q, 1, 256, 256)`` float32 logits, as the decoder returns them.
    point_counts : Tensor, optional
        ``(Q,)`` int64: points of each row, 0 to N; what stands behind them takes no part. Default: all N.
    has_box : Tensor, optional
        ``(Q,)`` bool: whether a row's box takes part. Default: all do, when there are boxes.

    Raises
    ------
    InputError
        When a shape, a dtype or a place does not hold.
    """

    counts: tuple[int, ...]
    point_coords: Tensor | None = None
    point_labels: Tensor | None = None
    boxes: Tensor | None = None
    mask_input: Tensor | None = None
    point_counts: Tensor | None = None
    has_box: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.counts or any(count < 1 for count in self.counts):
            raise InputError(f"Each image needs at least one prompt; found counts {self.counts}.")
        if (self.point_coords is None) != (self.point_labels is None):
            raise InputError("point_coords and point_labels come together; one of them is missing.")
        if self.point_coords is not None and self.point_labels is not None:
            _check_points(self.point_coords, self.point_labels, self.point_counts, self.queries)
        elif self.point_counts is not None:
            raise InputError("point_counts were given without points.")
        if self.boxes is not None:
            _check_boxes(self.boxes, self.has_box, self.queries)
        elif self.has_box is not None:
            raise InputError("has_box was given without boxes.")
        if self.mask_input is not None:
            _check_tensor("mask_input", self.mask_input, (self.queries, 1, LOW_RES_SIZE, LOW_RES_SIZE))

    @classmethod
    def none(cls, batch: int) -> Prompts:
        """No prompt at all: one query for each of ``batch`` images, which asks for whatever the decoder learnt."""
        return cls((1,) * batch)

    @property
    def queries(self) -> int:
        """Q: prompts of all images together."""
        return sum(self.counts)

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device; they are not checked again, as that would wait for the device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Prompts:
        """The same prompts in pinned memory, from which a GPU copies on its own; needs CUDA."""
        return self._each(Tensor.pin_memory)

    def of_images(self, images: slice) -> Prompts:
        """The prompts of some of the images; not checked again."""
        first, last, _ = images.indices(len(self.counts))
        rows = slice(sum(self.counts[:first]), sum(self.counts[:last]))
        return self._rows(rows, self.counts[first:last])

    def of_rows(self, rows: slice) -> Prompts:
        """Some of the prompts, which must be of one image; not checked again."""
        (count,) = self.counts
        return self._rows(rows, (len(range(*rows.indices(count))),))

    def replaced(self, **changes: Tensor | None) -> Prompts:
        """The same prompts with other tensors, which are not checked: for those computed on a device.

        A check would wait for the device. Shapes and dtypes must be those of the class.
        """
        changed = copy.copy(self)
        for name, value in changes.items():
            getattr(self, name)  # a name that is none is an AttributeError
            object.__setattr__(changed, name, value)
        return changed

    def _rows(self, rows: slice, counts: tuple[int, ...]) -> Prompts:
        part = self._each(lambda tensor: tensor[rows])
        object.__setattr__(part, "counts", counts)
        return part

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prompts:
        moved = copy.copy(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                object.__setattr__(moved, field.name, change(value))
        return moved


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    right = tensor.ndim == len(shape) and all(
        want in (None, have) for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not right:
        wanted = ", ".join("N" if want is None else str(want) for want in shape)
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; ({wanted}) is expected.")
    if tensor.dtype != torch.float32:
        raise InputError(f"{name} is {tensor.dtype}; torch.float32 is expected.")
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} holds values that are not finite.")


def _check_points(coords: Tensor, labels: Tensor, counts: Tensor | None, queries: int) -> None:
    _check_tensor("point_coords", coords, (queries, None, 2))
    if labels.shape != coords.shape[:2] or labels.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"point_labels is {labels.dtype} of shape {tuple(labels.shape)}; "
            f"torch.int32 of shape {tuple(coords.shape[:2])} is expected."
        )
    if not bool(((labels >= PAD_LABEL) & (labels <= 1)).all()):
        raise InputError("point_labels holds other values than 1 (in), 0 (out) and -1 (no point).")
    placed = labels != PAD_LABEL
    if counts is not None:
        _check_rows("point_counts", counts, torch.int64, queries)
        most = coords.shape[1]
        if not bool(((counts >= 0) & (counts <= most)).all()):
            raise InputError(f"point_counts reach beyond 0 to {most}, the points of a row.")
        placed = placed & (torch.arange(most, device=counts.device) < counts[:, None])
    _check_in_frame("point_coords", coords[placed])


def _check_boxes(boxes: Tensor, has_box: Tensor | None, queries: int) -> None:
    _check_tensor("boxes", boxes, (queries, 4))
    if has_box is not None:
        _check_rows("has_box", has_box, torch.bool, queries)
        boxes = boxes[has_box]
    _check_in_frame("boxes", boxes)
    if bool((boxes[:, :2] > boxes[:, 2:]).any()):
        raise InputError("boxes are x0, y0, x1, y1 with x0 <= x1 and y0 <= y1; some are not.")


def _check_rows(name: str, tensor: Tensor, dtype: torch.dtype, queries: int) -> None:
    if tensor.shape != (queries,) or tensor.dtype != dtype:
        raise InputError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; {dtype} of shape ({queries},) is expected."
        )


def _check_in_frame(name: str, values: Tensor) -> None:
    if values.numel() and (float(values.min()) < 0 or float(values.max()) > IMAGE_SIZE):
        raise InputError(
            f"{name} reach from {float(values.min()):g} to {float(values.max()):g}; "
            f"the frame reaches from 0 to {IMAGE_SIZE}.",
            hint="Points and boxes are pixels of the 1024 frame: Tile.to_frame turns tile pixels into them.",
        )
