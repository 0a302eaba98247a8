"""Turns a volume of labels and a store into "which label pixels lie on this tile": planes matched, sizes aligned.

Labels may be drawn on another pyramid level than the one that was encoded. An integer factor, in either
direction, is found from the sizes; everything that was inferred ends up in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import LabelError
from embedcache.geometry import Tile
from embedcache.store import EmbeddingStore
from embedcache.volume import Volume, open_volume

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


@dataclass(frozen=True)
class AlignedPlanes:
    """Planes of a label volume laid over the planes of a store.

    Parameters
    ----------
    volume : Volume
        The opened label file.
    plane_of : dict of int to int
        Plane of the store to plane of ``volume``; planes that are not in it have no label.
    factor_of : dict of int to Factor
        Plane of the store to the factor between the two sizes.
    same_for_all_planes : bool
        One label plane lies on every plane of a store of several planes.
    sentence : str
        What was inferred, for the user.
    """

    volume: Volume
    plane_of: dict[int, int]
    factor_of: dict[int, Factor]
    same_for_all_planes: bool
    sentence: str

    def __getstate__(self) -> dict[str, Any]:
        """For a DataLoader's worker: the label file is opened again there."""
        return {**self.__dict__, "volume": self.volume.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "volume": open_volume(state["volume"])})

    def read(self, tile: Tile) -> npt.NDArray[Any]:
        """Label pixels under a tile, at the label's own resolution.

        Returns
        -------
        ndarray, (height × down, width × down) or (ceil of height ÷ up, …)
            The source's dtype; colour is reduced to its brightest channel; 0 outside the label.
        """
        factor = self.factor_of[tile.plane]
        plane = self.plane_of[tile.plane]
        spans = [
            (_scaled(start, factor), _scaled_up(start + size, factor))
            for start, size in ((tile.y0, tile.height), (tile.x0, tile.width))
        ]
        limits = self.volume.plane_size(plane)
        rows, columns = (slice(min(a, n), min(b, n)) for (a, b), n in zip(spans, limits, strict=True))
        pixels = self.volume.read(plane, rows, columns)
        if pixels.ndim == 3:
            pixels = pixels.max(axis=2)
        missing = [b - a - have for (a, b), have in zip(spans, pixels.shape, strict=True)]
        return np.pad(pixels, [(0, missing[0]), (0, missing[1])]) if any(missing) else pixels

    def to_tile(
        self, pixels: npt.NDArray[Any], tile: Tile, counted: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[Any]:
        """What :meth:`read` gave, or a map of it, brought to tile px.

        Boolean maps of finer labels are averaged (half or more of those pixels that are ``counted``, by default
        all), other values take the nearest.
        """
        factor = self.factor_of[tile.plane]
        if factor.down > 1:
            step = factor.down
            if pixels.dtype == np.bool_:
                cells = _sums(pixels, tile, step)
                total = step * step if counted is None else _sums(counted, tile, step)
                return np.asarray((2 * cells >= total) & (total > 0))
            return pixels[step // 2 :: step, step // 2 :: step]
        if factor.up > 1:
            rows = np.arange(tile.y0, tile.y0 + tile.height) // factor.up - tile.y0 // factor.up
            columns = np.arange(tile.x0, tile.x0 + tile.width) // factor.up - tile.x0 // factor.up
            return pixels[rows][:, columns]
        return pixels


def _sums(pixels: npt.NDArray[np.bool_], tile: Tile, step: int) -> npt.NDArray[np.int32]:
    """How many of the finer pixels under each tile px are set: int32 (height, width)."""
    cells = pixels.reshape(tile.height, step, tile.width, step)
    return np.asarray(cells.sum(axis=(1, 3), dtype=np.int32))


def _scaled(start: int, factor: Factor) -> int:
    return start * factor.down // factor.up


def _scaled_up(end: int, factor: Factor) -> int:
    return -(-end * factor.down // factor.up)


def align(volume: Volume, store: EmbeddingStore, what: str = "label") -> AlignedPlanes:
    """Lay a label volume over a store.

    Image folders are matched by exact name, then by stem, then in natural order when there are as many
    labels as images. Stacks are matched plane by plane, at the factor of the sizes where the level differs
    in depth too, else by the trailing number of the label file's name. One label plane lies on all planes.

    Raises
    ------
    LabelError
        When planes cannot be matched or a size fits at no integer factor; both sizes are given.
    """
    planes = sorted({int(plane) for plane in store.table[:, 0] if plane >= 0})
    if store.uniform:
        plane_of, sentence = _match_stack(volume, store, planes, what)
    else:
        plane_of, sentence = _match_images(volume, store, planes, what)
    factors = {plane: _fit(volume, store, plane, label, what) for plane, label in plane_of.items()}
    same = volume.n_planes == 1 and len(planes) > 1 and store.uniform
    scales = sorted({factor.sentence for factor in factors.values()} - {""})
    return AlignedPlanes(volume, plane_of, factors, same, "; ".join([sentence, *scales]))


def _fit(volume: Volume, store: EmbeddingStore, plane: int, label: int, what: str) -> Factor:
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


def _match_images(
    volume: Volume, store: EmbeddingStore, planes: Sequence[int], what: str
) -> tuple[dict[int, int], str]:
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


def _match_stack(
    volume: Volume, store: EmbeddingStore, planes: Sequence[int], what: str
) -> tuple[dict[int, int], str]:
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
