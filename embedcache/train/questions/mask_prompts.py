"""Turns earlier predictions into mask prompts: a volume of masks or probabilities laid over a store's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, LabelError, VolumeError
from embedcache.geometry import Tile, see
from embedcache.remote.address import is_remote, one_name
from embedcache.store import EmbeddingStore
from embedcache.train.questions.targets import area_average, content_share
from embedcache.train.truth.alignment import AlignedPlanes, align
from embedcache.train.truth.labels import sample_pixels
from embedcache.volume import open_volume

LARGEST_LOGIT = 10.0
"""Logits are clipped to this, so that a mask of 0 and 1 gives a strong prompt rather than an infinite one."""


class MaskPrompts:
    """Mask prompts of a store's tiles; made by :func:`open_mask_prompts`.

    Attributes
    ----------
    source : str
        Path of the file or folder.
    alignment : str
        How it lies on the planes; one sentence.
    planes : frozenset of int
        Planes of the store that have one.
    """

    def __init__(self, aligned: AlignedPlanes, certain: float) -> None:
        self._aligned, self._certain = aligned, certain
        self.source: str = aligned.volume.source
        self.alignment: str = aligned.sentence
        self.planes: frozenset[int] = frozenset(aligned.plane_of)

    def logits(self, tile: Tile) -> npt.NDArray[np.float32]:
        """The mask prompt of a tile, as seen: float32 (256, 256); the padding is outside.

        Raises
        ------
        LabelError
            When values are no probabilities.
        """
        aligned = self._aligned
        pixels = aligned.to_tile(aligned.read(tile), tile)
        chances = see(self.probabilities(pixels), tile.view)
        seen = tile.seen
        share = content_share(seen)
        average = area_average(chances, seen) / np.maximum(share, 1e-6)
        low = 1 / (1 + np.exp(LARGEST_LOGIT))
        inside = np.clip(np.where(share > 0, average, 0.0), low, 1 - low)
        return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float32)

    def probabilities(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Pixels as values from 0 to 1.

        Raises
        ------
        LabelError
            When they reach beyond.
        """
        values = np.nan_to_num(pixels.astype(np.float32), nan=0.5) / np.float32(self._certain)
        if values.size and (values.min() < 0 or values.max() > 1):
            raise LabelError(
                f"{self.source} reaches from {pixels.min():g} to {pixels.max():g}; masks of {self._certain:g} or "
                "probabilities from 0 to 1 are expected.",
                hint="predict writes masks, and with --probabilities probabilities.",
            )
        return values


def open_mask_prompts(path: str | Path, store: EmbeddingStore) -> MaskPrompts:
    """Open earlier predictions and lay them over a store's planes, by the rules of labels.

    Parameters
    ----------
    path : path
        What ``predict`` wrote, or any volume of masks or probabilities: whole numbers to 1, 255 or 65535, which
        are certain; or fractions from 0 to 1, where NaN is undecided.
    store : EmbeddingStore

    Raises
    ------
    LabelError
        When it cannot be read, its size fits no level (both sizes are given), or its values are none of these.
    """
    try:
        volume = open_volume(path)
    except VolumeError as error:
        raise LabelError(f"The start file cannot be opened: {error.message}", hint=error.hint) from error
    aligned = align(volume, store, "start file")
    samples = list(sample_pixels(aligned, store))
    start = MaskPrompts(aligned, _certain(samples))
    for sample in samples:
        start.probabilities(sample)
    return start


def _certain(samples: Sequence[npt.NDArray[Any]]) -> float:
    """The value that stands for certainty."""
    if samples[0].dtype.kind == "f":
        return 1.0
    largest = max(int(sample.max(initial=0)) for sample in samples)
    return next((top for top in (1.0, 255.0) if largest <= top), 65535.0)


def require_free(start: MaskPrompts, labels: str) -> None:
    """Refuse a start that is the labels themselves.

    Raises
    ------
    ConfigError
        When both are one file or folder.
    """
    if _one_place(start.source) == _one_place(labels):
        raise ConfigError(
            f"--start is {labels}, the labels themselves: figures would show how well the truth is copied.",
            hint="Start from predictions of a model that was not trained on the tiles that are held out.",
        )


def _one_place(source: str) -> str:
    """A source as one text, however it was written."""
    return one_name(source) if is_remote(source) else str(Path(source).resolve())


def require_start(
    start: MaskPrompts | None, store: EmbeddingStore, tiles: npt.NDArray[np.int64], labels: str | None = None
) -> MaskPrompts:
    """The start of prompts of kind mask, when there is one that covers the tiles.

    Raises
    ------
    ConfigError
        When there is none, or it is the labels that are given.
    LabelError
        When it has nothing on the plane of some tile.
    """
    if start is None:
        raise ConfigError(
            "--prompts mask needs earlier predictions to start from.",
            hint="Give them with --start; predict writes them.",
        )
    if labels is not None:
        require_free(start, labels)
    without = sorted({int(plane) for plane in np.asarray(store.table)[tiles, 0]} - start.planes)
    if without:
        raise LabelError(
            f"{start.source} holds nothing for {len(without)} of the planes that are labelled, the first is "
            f"{store.plane_name(without[0])} ({start.alignment})."
        )
    return start
