"""Turns what one command asks for into a ``Request``, and says whether a recorded store was asked for alike.

Options are words (``p1:p99``, ``auto``); a spec holds what they meant for one volume on one machine. A store keeps
both: equal specs are one store, equal words with another spec mean that the volume, the weights or the machine
changed, and that must be said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcache.encode.options import EncodeOptions
from embedcache.errors import VolumeError
from embedcache.progress import Silent
from embedcache.sam.registry import MODELS
from embedcache.store import EncodeSpec
from embedcache.volume import Preprocess, Volume
from embedcache.volume.normalisation import inside_mask, is_named, window_of
from embedcache.volume.remembered import statistics_of
from embedcache.volume.window import canonical_window, is_sampled, resolve_window

SAMPLED_WINDOW = "sampled_window"
"""Field of a volume's identity: the window its pixels would give now, where its store keeps an older one."""


@dataclass(frozen=True)
class Request:
    """What one command would make.

    Parameters
    ----------
    spec : EncodeSpec
        As resolved here and now.
    words : dict
        The recipe as it was asked for; see :func:`asked_words`.
    volume : Volume
        The opened source.
    weights : str
        Where the weights came from.
    """

    spec: EncodeSpec
    words: dict[str, Any]
    volume: Volume
    weights: str

    def is_alike(self, spec: EncodeSpec, provenance: Mapping[str, Any]) -> bool:
        """Whether a store was made from the same source by the same words; its identity may differ."""
        said, now = recorded_words(provenance), self.spec
        return (
            same_source(provenance.get("source"), self.volume.source)
            and spec.grid == now.grid
            and spec.store_dtype == now.store_dtype
            and spec.preprocess.channels == now.preprocess.channels
            and said.get("level") == self.words["level"]
            and (spec.precision == now.precision or said.get("precision") == self.words["precision"])
            and (spec.encoder_digest == now.encoder_digest or self._names_the_weights(said))
            and (spec.preprocess.window == now.preprocess.window or self._names_the_window(said))
        )

    def _names_the_weights(self, said: Mapping[str, Any]) -> bool:
        names = (self.words["checkpoint"], self.weights)
        same_file = any(same_source(said.get("checkpoint"), name) for name in names)
        return said.get("model") == self.words["model"] and same_file

    def _names_the_window(self, said: Mapping[str, Any]) -> bool:
        """Stores that do not say how their window was asked for had it sampled, unless it is given now."""
        window = self.words["window"]
        return said["window"] == window if "window" in said else is_sampled(window)

    def expected(self, spec: EncodeSpec, provenance: Mapping[str, Any]) -> EncodeSpec:
        """The spec that a store would have if it held this volume as it is now.

        A sampled window is frozen when a store is made and stays: images may be added to a collection, and changed
        tiles of an array may be encoded anew. What an array's pixels would give now is then part of its
        identity, so that a later change is still seen. With a window go the figures that it was found from. Those
        taken inside a mask say nothing of the volume when another mask is given: they stay as they are.
        """
        now, kept = self.spec, spec.preprocess.window
        said = recorded_words(provenance).get("window")
        mine = self.words["window"]
        frozen = replace(now, preprocess=replace(now.preprocess, window=kept), statistics=spec.statistics)
        if said is None:
            return frozen if is_sampled(mine) and not self.volume.uniform else now
        if not is_sampled(said) or (mine != said and now.preprocess.window != kept):
            return now
        if not self.volume.uniform or inside_mask(said):
            return frozen
        sample = now.preprocess.window if mine == said else self._sample(said)
        if sample == kept:
            return frozen
        return replace(
            frozen, volume={**now.volume, SAMPLED_WINDOW: None if sample is None else list(sample)}
        )

    def _sample(self, words: str) -> tuple[float, float] | None:
        try:
            if is_named(words):
                return window_of(words, statistics_of(self.volume, mask=None, progress=Silent()))
            return resolve_window(self.volume, words)
        except VolumeError:
            return None  # of one single value: another volume than the one that gave the window


def same_source(recorded: object, now: str) -> bool:
    """Whether two names are of one file or folder, however its path is spelled and through whichever links."""
    return isinstance(recorded, str) and real_source(recorded) == real_source(now)


def real_source(source: str) -> str:
    """The one name of a source: an absolute path without links (``file.h5:dataset`` too); all else as it is."""
    if not Path(source).is_absolute():
        return source
    path, colon, inside = source.rpartition(":")
    if colon and not os.path.lexists(source) and os.path.lexists(path):
        return os.path.realpath(path) + colon + inside
    return os.path.realpath(source)


def asked_words(options: EncodeOptions, volume: Volume, preprocess: Preprocess) -> dict[str, Any]:
    """The recipe as it was asked for, defaults named, as JSON values."""
    checkpoint = options.checkpoint
    if checkpoint != "auto" and checkpoint not in MODELS and not checkpoint.startswith("random:"):
        checkpoint = str(Path(checkpoint).expanduser().absolute())
    return {
        "model": options.model,
        "checkpoint": checkpoint,
        "tile": options.tile or "full",
        "overlap": options.overlap,
        "level": options.level,
        "channels": preprocess.channels,
        "window": canonical_window(options.window, volume),
        "precision": options.precision,
        "store_dtype": options.store_dtype,
    }


def recorded_words(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The words that a store was asked for with; of older ones what the recipe tells, which lacks the window's."""
    asked, recipe = provenance.get("asked"), provenance.get("recipe")
    if isinstance(asked, Mapping):
        return {name: value for name, value in asked.items() if name != "window" or isinstance(value, str)}
    if isinstance(recipe, Mapping):
        return {name: value for name, value in recipe.items() if name != "window"}
    return {}
