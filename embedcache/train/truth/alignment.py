"""Turns a volume of labels and a store into "which label pixels lie on this tile": planes matched, sizes aligned.

Labels may be drawn on another pyramid level than the one that was encoded. An integer factor, in either
direction, is found from the sizes; everything that was inferred ends up in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import LabelError
from embedcache.geometry import Tile
from embedcache.store import EmbeddingStore
from embedcache.train.truth.flat_stack import flat_sentence, known_as_flat, only_filled_plane
from embedcache.train.truth.matching import Factor, fit, match_images, match_stack
from embedcache.volume import Volume, open_volume

LABEL_MEMORY = 512 << 20
"""Decoded label pixels that one opened file keeps; an image that is larger is kept whole until the next one."""

START = "start file"
"""What predictions to start from are called; they have the planes of the store, whatever these are made of."""

_COMPOSITE = ("depth:", "random:")
"""Channel recipes whose planes are made of several slices, so that no plane of labels is theirs alone."""


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
        """For a DataLoader's worker: the label file is opened again there, at the same level."""
        return {**self.__dict__, "volume": (self.volume.source, self.volume.level)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        source, level = state["volume"]
        volume = open_volume(source, level=level, read_memory=LABEL_MEMORY)
        self.__dict__.update({**state, "volume": volume})

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
    in depth too, else by the trailing number of the label file's name. One label plane lies on all planes, and so
    does the only filled plane of a stack that is named as labels of a surface are.

    Raises
    ------
    LabelError
        When planes cannot be matched or a size fits at no integer factor; both sizes are given.
    """
    planes = sorted({int(plane) for plane in store.table[:, 0] if plane >= 0})
    flat = _flat_plane(volume, store, what)
    if flat is not None:
        plane_of, sentence = dict.fromkeys(planes, flat), flat_sentence(volume, flat, what)
    elif store.uniform:
        plane_of, sentence = match_stack(volume, store, planes, what)
    else:
        plane_of, sentence = match_images(volume, store, planes, what)
    factors = {plane: fit(volume, store, plane, label, what) for plane, label in plane_of.items()}
    same = (flat is not None or volume.n_planes == 1) and len(planes) > 1 and store.uniform
    scales = sorted({factor.sentence for factor in factors.values()} - {""})
    return AlignedPlanes(volume, plane_of, factors, same, "; ".join([sentence, *scales]))


def _flat_plane(volume: Volume, store: EmbeddingStore, what: str) -> int | None:
    """The plane of a stack that is the 2-D label of all planes.

    Raises
    ------
    LabelError
        When each plane of the store is made of several slices, and the labels are not flat.
    """
    channels = store.spec.preprocess.channels
    composite = channels.startswith(_COMPOSITE) and what != START
    if volume.n_planes == 1 or not store.uniform or not (composite or known_as_flat(volume.source)):
        return None
    plane = only_filled_plane(volume)
    if plane is None and composite:
        raise LabelError(
            f"The {what} {volume.source} has {volume.n_planes} planes, of which not just one is filled, but each "
            f"plane of the store is made of several slices (--channels {channels}).",
            hint="Give one 2-D label for all of them.",
        )
    return plane
