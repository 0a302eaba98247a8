"""Turns ``EncodeOptions`` into an ``EncodeJob``: everything opened, resolved and identified, nothing written.

This is where each wrong input is refused: volume, selection, channels, window, weights, and a store that is not
the one this command would have made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.encode.empty import is_still_empty
from embedcache.encode.identity.place import image_table, locate, require_but_for_weights
from embedcache.encode.identity.unchanged import Seen
from embedcache.encode.identity.words import Request, asked_words
from embedcache.encode.options import EncodeOptions
from embedcache.encode.overlapped import Stop
from embedcache.encode.plan import EncodePlan, plan_encode
from embedcache.encode.provenance import provenance_of, say_licence
from embedcache.encode.survey import say_what_window_stays, selected_views, survey, tile_table
from embedcache.geometry import VIEW_SETS
from embedcache.progress import Progress
from embedcache.sam.encoder import Precision, resolve_device, resolve_precision
from embedcache.sam.weights import Weights, model_type_of, resolve_weights
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.creation import SHARD_TILES
from embedcache.store.views import Numbering, Segment, base_rows, grown, planes_of, table_of
from embedcache.volume import (
    ImageRecord,
    ImageVolume,
    Preprocess,
    Selection,
    Volume,
    volume_identity,
)


@dataclass(frozen=True)
class EncodeJob:
    """One ``encode``, ready to be planned and done.

    Parameters
    ----------
    options : EncodeOptions
        The wishes.
    volume : Volume
        The opened source; for an image folder, in the order of the store's image table.
    weights : Weights
        The model's tensors.
    spec : EncodeSpec
        What decides every embedding; its fingerprint names the store.
    table : (N, 5) or (N, 6) int64
        The tile table of the whole volume, with all views that the store has or gets.
    selection : Selection
        What of it is asked for.
    images : tuple of ImageRecord
        The image table of a folder; empty for arrays.
    store_path : Path
        Where the store is or will be.
    store : EmbeddingStore or None
        The store, when it exists already.
    device : torch.device
        Where the encoder runs.
    words : dict
        The recipe as it was asked for.
    seen : Seen
        The store as it was found; what it must still be when it is written.
    segments : tuple of Segment
        Which rows of the table are which views: those of the store, and those that this command adds.
    """

    options: EncodeOptions
    volume: Volume
    weights: Weights
    spec: EncodeSpec
    table: npt.NDArray[np.int64]
    selection: Selection
    images: tuple[ImageRecord, ...]
    store_path: Path
    store: EmbeddingStore | None
    device: torch.device
    words: dict[str, Any]
    seen: Seen
    segments: tuple[Segment, ...] = ()

    @property
    def views(self) -> tuple[int, ...]:
        """The views in which the selected tiles are asked for."""
        return VIEW_SETS[self.options.views]

    @property
    def base_table(self) -> npt.NDArray[np.int64]:
        """The tiles as they lie, (N₀, 5), in the order of the grid: what a new store begins with."""
        return base_rows(self.table, self.segments, uniform=self.volume.uniform)

    @property
    def rows_of_images(self) -> npt.NDArray[np.int64]:
        """The table up to the last base tile: all rows that come before views are added."""
        if not self.segments:
            return self.table
        return self.table[: int(np.flatnonzero(self.table[:, 5] == 0)[-1]) + 1]

    @property
    def asked(self) -> dict[str, Any]:
        """The selection as the journal keeps it; views are named where there are any."""
        words = self.selection.to_dict()
        return words if self.options.views == "none" else {**words, "views": self.options.views}

    @property
    def empty(self) -> float | None:
        """Tiles with no pixel above this are left out; None where none is."""
        return self.options.empty_threshold if self.options.skips_empty else None

    @property
    def precision(self) -> Precision:
        """The resolved precision, as the encoder takes it."""
        return resolve_precision(self.spec.precision, self.device)

    @property
    def preprocess(self) -> Preprocess:
        """The frozen preprocessing of this job."""
        return self.spec.preprocess

    def plan(self) -> EncodePlan:
        """What is selected and what of it is missing.

        Raises
        ------
        VolumeError
            When the selection lies outside the volume or selects nothing.
        """
        numbering = Numbering(self.store_path, self.table, self.segments, self.volume.uniform)
        selected = selected_views(numbering, self.selection, self.volume, self.views)
        if self.store is None:
            return plan_encode(
                self.table,
                selected,
                None,
                self.options.shard_tiles,
                store_dtype=self.spec.store_dtype,
                views=len(self.views),
            )
        return self.plan_for(self.store, selected)

    def plan_for(self, store: EmbeddingStore, selected: npt.NDArray[np.bool_]) -> EncodePlan:
        """What of the selected tiles a store lacks; what it skipped is done while it would be skipped again."""
        done = store.committed
        if self.empty is not None:
            # by the code of each reason: a scroll has millions of empty tiles, and few reasons
            still = [False, *(is_still_empty(reason, self.empty) for reason in store.state.reasons)]
            done |= store.skipped & np.array(still, np.bool_)[store.state.reason]
        return plan_encode(
            self.table,
            selected,
            done,
            store.shard_tiles,
            store_dtype=store.spec.store_dtype,
            views=len(self.views),
        )

    def provenance(self) -> dict[str, Any]:
        """Where the embeddings come from: source, weights, versions, origin, and the recipe to do it again."""
        return provenance_of(self.options, self.volume, self.weights, self.spec, self.device, self.words)


def prepare(options: EncodeOptions, progress: Progress, stop: Stop = lambda: None) -> EncodeJob:
    """Open and resolve everything ``options`` name; write nothing.

    Raises
    ------
    InputError
        For a wrong volume, channel recipe, window, weights or device.
    MismatchError
        When the store that is there, by name or by source and words, was made by another spec.
    """
    seen = survey(options, progress, stop)
    volume, preprocess, grid, table = seen.volume, seen.preprocess, seen.grid, seen.table
    # a scheduler's workers compute elsewhere: this machine may have no such device
    device = torch.device("cpu") if options.scheduler else resolve_device(options.device)
    spec = EncodeSpec(
        model_type=model_type_of(options.model),
        encoder_digest="",
        precision=resolve_precision(options.precision, device),
        preprocess=preprocess,
        volume=volume_identity(volume, grid, preprocess),
        grid=grid,
        store_dtype=options.store_dtype,
        statistics=seen.statistics,
    )
    words = asked_words(options, volume, preprocess)
    require_but_for_weights(options, Request(spec, words, volume, ""), table)
    weights = resolve_weights(options.model, options.checkpoint, progress=progress)
    spec = replace(spec, encoder_digest=weights.encoder_digest)
    request = Request(spec, words, volume, weights.source)
    place = locate(options, request, table, progress)
    store, spec = place.store, place.spec
    images: tuple[ImageRecord, ...] = ()
    if isinstance(volume, ImageVolume):
        if store is not None:
            volume = volume.reordered([record.name for record in store.images])
        images = image_table(volume, store, options)
        table = tile_table(volume, preprocess, grid, [(image.height, image.width) for image in images])
    planes = len(images) if images else planes_of(table)
    segments = grown(() if store is None else store.state.segments, planes, VIEW_SETS[options.views])
    table = table_of(table, segments, uniform=volume.uniform)
    say_licence(options, volume, store, progress)
    if store is not None:
        options = _with_shards_of(store, options, progress)
        say_what_window_stays(seen, store, progress)
    return EncodeJob(
        options,
        volume,
        weights,
        spec,
        table,
        seen.selection,
        images,
        place.path,
        store,
        device,
        request.words,
        Seen(spec.fingerprint) if store is None else Seen.of(store),
        segments,
    )


def _with_shards_of(store: EmbeddingStore, options: EncodeOptions, progress: Progress) -> EncodeOptions:
    """The options with the tiles of a shard that the store has; that others were asked for is said."""
    if options.shard_tiles not in (SHARD_TILES, store.shard_tiles):
        progress.say(
            f"{store.path} has {store.shard_tiles} tiles a shard, which stays so; --shard-tiles "
            f"{options.shard_tiles} is for a new store."
        )
    return replace(options, shard_tiles=store.shard_tiles)
