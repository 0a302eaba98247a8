"""Turns sizes and names of label planes and of a store's planes into which lies on which, and at which factor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from embedcache.errors import LabelError
from embedcache.store import EmbeddingStore
from embedcache.volume import Volume

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Factor:
    """How label pixels relate to pixels of the encoded level.

    Parameters
    ----------
    down : int
        Label pixels per encoded pixel along an axis (labels of a finer level).
    up : int
        Encoded pixels per label pixel along an axis (labels of a coarser level). One of the two is 1.
    """

    down: int = 1
    up: int = 1

    @property
    def sentence(self) -> str:
        """The factor in words; empty when there is none."""
        if self.down > 1:
            return f"labels are {self.down} times finer than the encoded level and are averaged down"
        if self.up > 1:
            return f"labels are {self.up} times coarser than the encoded level and are enlarged"
        return ""


def find_factor(label: Size, plane: Size) -> Factor | None:
    """The integer factor between a label's and a plane's size, both (height, width); None when there is none.

    Pyramids round sizes up or down, so the last row or column may be cut or padded by less than one factor.
    """
    if label == plane:
        return Factor()
    down = round(label[0] / plane[0])
    if down > 1 and all(abs(a - b * down) < down for a, b in zip(label, plane, strict=True)):
        return Factor(down=down)
    up = round(plane[0] / label[0])
    if up > 1 and all(abs(b - a * up) < up for a, b in zip(label, plane, strict=True)):
        return Factor(up=up)
    return None


def fit(volume: Volume, store: EmbeddingStore, plane: int, label: int, what: str) -> Factor:
    """The factor between a label plane and a plane of the store; LabelError with both sizes when there is none."""
    label_size, plane_size = volume.plane_size(label), store.plane_size(plane)
    factor = find_factor(label_size, plane_size)
    if factor is None:
        raise LabelError(
            f"The {what} {volume.source} ({volume.plane_name(label)}) is {label_size[0]}×{label_size[1]} px, "
            f"but {store.plane_name(plane)} of the store's level is {plane_size[0]}×{plane_size[1]} px, "
            "and no integer factor lies between them.",
            hint="Use the label of this volume, at the encoded level or at another level of its pyramid.",
        )
    return factor


def match_images(
    volume: Volume, store: EmbeddingStore, planes: Sequence[int], what: str
) -> tuple[dict[int, int], str]:
    """Labels of a collection of images: by name, by stem, or in natural order; and how, in words."""
    names = {plane: store.plane_name(plane) for plane in planes}
    labels = {volume.plane_name(index): index for index in range(volume.n_planes)}
    exact = {plane: labels[name] for plane, name in names.items() if name in labels}
    if exact:
        return exact, f"{len(exact)} of {len(planes)} images have a {what} of the same name"
    stems = {_stem(name): index for name, index in labels.items()}
    by_stem = {plane: stems[_stem(name)] for plane, name in names.items() if _stem(name) in stems}
    if by_stem:
        return by_stem, f"{len(by_stem)} of {len(planes)} images have a {what} of the same stem"
    if volume.n_planes == len(planes):
        return dict(zip(planes, range(volume.n_planes), strict=True)), (
            f"no {what} has the name of an image: the {len(planes)} {what}s were matched in natural order"
        )
    raise LabelError(
        f"None of the {volume.n_planes} {what}s in {volume.source} has the name of one of the "
        f"{len(planes)} images of the store, and the numbers differ, so they cannot be matched by order.",
        hint=f"Name each {what} as its image, for example {_stem(names[planes[0]])}.png.",
    )


def match_stack(
    volume: Volume, store: EmbeddingStore, planes: Sequence[int], what: str
) -> tuple[dict[int, int], str]:
    """Labels of a stack: plane by plane, one for all, by numbers in names, or at a factor; and how, in words."""
    depth, labels = planes[-1] + 1, volume.n_planes
    if labels == depth:
        order = " in natural order" if not volume.uniform and depth > 1 else ""
        return {plane: plane for plane in planes}, (
            f"one {what} plane lies on one plane"
            if depth == 1
            else f"{depth} {what} planes lie on {depth} planes{order}"
        )
    if labels == 1:
        return dict.fromkeys(planes, 0), f"one {what} plane lies on all {depth} planes"
    numbers = _trailing_numbers(volume)
    if numbers is not None and set(numbers) <= set(range(depth)):
        return {number: index for index, number in enumerate(numbers)}, (
            f"{labels} {what}s lie on the planes that the numbers in their names give, of {depth}"
        )
    factor = find_factor(volume.plane_size(0), store.plane_size(planes[0]))
    if factor is not None and factor.down > 1 and abs(labels - depth * factor.down) < factor.down:
        middle = factor.down // 2
        return {plane: min(plane * factor.down + middle, labels - 1) for plane in planes}, (
            f"every {factor.down}th of {labels} {what} planes lies on one of {depth} planes"
        )
    if factor is not None and factor.up > 1 and abs(depth - labels * factor.up) < factor.up:
        return {plane: min(plane // factor.up, labels - 1) for plane in planes}, (
            f"each of {labels} {what} planes lies on {factor.up} of {depth} planes"
        )
    raise LabelError(
        f"The {what} {volume.source} has {labels} planes of {_times(volume.plane_size(0))} px, but the "
        f"store's level has {depth} planes of {_times(store.plane_size(planes[0]))} px.",
        hint=f"Give one {what} plane for all planes, as many as the volume has, or files that end in a number.",
    )


def _trailing_numbers(volume: Volume) -> list[int] | None:
    """The last number in each label file's stem; None unless each has one and all differ."""
    if volume.uniform:
        return None
    found = [re.search(r"(\d+)$", _stem(volume.plane_name(index))) for index in range(volume.n_planes)]
    numbers = [int(match.group(1)) for match in found if match]
    return numbers if len(numbers) == len(set(numbers)) == volume.n_planes else None


def _stem(name: str) -> str:
    return PurePath(name).stem


def _times(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
