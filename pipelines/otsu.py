"""Otsu's threshold as a baseline: what darkness alone finds, on the same pixels that a run is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import embedcache as ec

BINS = 256

Bools = npt.NDArray[np.bool_]


def otsu_threshold(values: npt.NDArray[np.generic]) -> float:
    """The grey value that parts values into two classes of the greatest variance between them.

    Parameters
    ----------
    values : any numbers (N,)
        8-bit values have a bin each, others 256 bins from the least to the greatest.

    Returns
    -------
    float
        What is at most this is the dark class.
    """
    if values.size == 0:
        raise ValueError("There are no pixels to part.")
    if values.dtype == np.uint8:
        counts, edges = np.bincount(values, minlength=BINS), np.arange(BINS + 1) - 0.5
    else:
        counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
    weights = counts / counts.sum()
    middles = (edges[:-1] + edges[1:]) / 2
    dark = np.cumsum(weights)
    mean_dark = np.cumsum(weights * middles)
    both = dark * (1 - dark)
    between = np.divide((mean_dark[-1] * dark - mean_dark) ** 2, both, out=np.zeros(BINS), where=both > 1e-12)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))  # a gap between classes: its middle
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def otsu_figures(
    store: ec.EmbeddingStore,
    volume: Path,
    ink: Path,
    parchment: Path | None,
    numbers: Sequence[int],
) -> dict[str, Any]:
    """Figures of Otsu's threshold, one for each photograph, ink being the dark side; pixels are pooled.

    Parameters
    ----------
    store : EmbeddingStore
    volume : path
        What was encoded.
    ink : path
        The labels.
    parchment : path, optional
        The supervision mask: where labels count, and where the threshold is looked for; default: everywhere.
    numbers : sequence of int
        Tiles that are held out; their planes are measured where these tiles lie.
    """
    truths = ec.EmbeddingDataset(
        store, ink, supervision=parchment, task="semantic", prompts="none", tiles=list(numbers)
    ).labels
    totals, thresholds, greys = np.zeros(3, np.int64), {}, np.zeros((2, BINS), np.int64)
    with ec.open_volume(volume) as photographs:
        place_of = {photographs.plane_name(p): p for p in range(photographs.n_planes)}
        for plane in sorted({store.tile(number).plane for number in numbers}):
            own = [store.tile(number) for number in numbers if store.tile(number).plane == plane]
            size, name = store.plane_size(plane), store.plane_name(plane)
            pixels = photographs.read(place_of[name], slice(0, size[0]), slice(0, size[1]))
            grey = np.rint(pixels.mean(axis=2)).astype(pixels.dtype) if pixels.ndim == 3 else pixels
            inside = _laid(size, [(tile, truths.supervised(tile)) for tile in own])
            truth = _laid(size, [(tile, truths.crop(tile) > 0) for tile in own]) & inside
            if not inside.any():
                continue
            thresholds[name] = otsu_threshold(grey[inside])
            totals += _counts((grey <= thresholds[name]) & inside, truth)
            if grey.dtype == np.uint8:
                greys += [np.bincount(grey[part], minlength=BINS) for part in (truth, inside & ~truth)]
    return {
        **_figures(*totals.tolist()),
        "thresholds": thresholds,
        "inside": "everything" if parchment is None else "parchment",
        "best_single_grey": _best_grey(greys),
    }


def _best_grey(greys: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """The grey value that would part all photographs best, chosen by their truth: no baseline, but a bound.

    Parameters
    ----------
    greys : int64 (2, 256)
        Pixels of each grey value that are ink, and that are not.
    """
    ink, other = greys.cumsum(axis=1)
    if not ink[-1]:
        return None
    dice = 2 * ink / np.maximum(1, ink + other + ink[-1])
    best = int(dice.argmax())
    return {"dice": float(dice[best]), "grey": best, "chosen_on": "the truth of these photographs"}


def _laid(size: tuple[int, int], pieces: Sequence[tuple[ec.Tile, Bools]]) -> Bools:
    """Pieces of a plane in their places."""
    plane = np.zeros(size, np.bool_)
    for tile, piece in pieces:
        rows, columns = tile.slices
        place = plane[rows, columns]
        place |= piece[: place.shape[0], : place.shape[1]]
    return plane


def _counts(found: Bools, truth: Bools) -> npt.NDArray[np.int64]:
    both = np.count_nonzero(found & truth)
    return np.array([both, np.count_nonzero(found) - both, np.count_nonzero(truth) - both], np.int64)


def _figures(tp: int, fp: int, fn: int) -> dict[str, Any]:
    precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
    return {
        "dice": 2 * tp / max(1, 2 * tp + fp + fn),
        "f05": 1.25 * tp / max(1, 1.25 * tp + fp + 0.25 * fn),
        "precision": precision,
        "recall": recall,
    }
