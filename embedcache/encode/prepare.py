"""Turns ``EncodeOptions`` into an ``EncodeJob``: everything opened, resolved and identified, nothing written.

This is where each wrong input is refused: volume, selection, channels, window, weights, and a store that is not
the one this command would have made.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.encode.options import EncodeOptions
from embedcache.encode.plan import EncodePlan, plan_encode
from embedcache.encode.survey import is_sampled, selected_tiles, survey, tile_table
from embedcache.errors import MismatchError
from embedcache.files import digest_json, storage_error
from embedcache.progress import Progress
from embedcache.sam.encoder import Precision, resolve_device, resolve_precision
from embedcache.sam.weights import Weights, resolve_weights
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.layout import GROUP_FILE
from embedcache.volume import (
    ImageRecord,
    ImageVolume,
    Preprocess,
    Selection,
    Volume,
    volume_identity,
)

FINGERPRINT_LETTERS = 6


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
    table : (N, 5) int64
        The tile table of the whole volume.
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
        selected = selected_tiles(self.table, self.selection, self.volume)
        if self.store is None:
            return plan_encode(self.table, selected, None, self.options.shard_tiles)
        return self.plan_for(self.store, selected)

    def plan_for(self, store: EmbeddingStore, selected: npt.NDArray[np.bool_]) -> EncodePlan:
        """What of the selected tiles a store lacks; what it skipped is done only while empty tiles are skipped."""
        done = store.committed | store.skipped if self.options.skips_empty else store.committed
        return plan_encode(self.table, selected, done, store.shard_tiles)

    def provenance(self) -> dict[str, Any]:
        """Where the embeddings come from: source, weights, versions, licence, and the recipe to do it again."""
        window = ":".join(f"{edge:.17g}" for edge in self.preprocess.window)
        recipe = {
            "model": self.options.model,
            "checkpoint": self.weights.source,
            "tile": self.options.tile or "full",
            "overlap": self.options.overlap,
            "level": self.options.level,
            "channels": self.preprocess.channels,
            "window": window,
            "precision": self.spec.precision,
            "store_dtype": self.spec.store_dtype,
        }
        packages = ("embedcache", "torch", "zarr", "numpy", "segment-anything")
        return {
            "source": self.volume.source,
            "weights": self.weights.source,
            "untrained": self.weights.untrained,
            "licence": self.options.licence,
            "versions": {name: version(name) for name in packages},
            "python": platform.python_version(),
            "device": device_name(self.device),
            "recipe": recipe,
        }


def prepare(options: EncodeOptions, progress: Progress) -> EncodeJob:
    """Open and resolve everything ``options`` name; write nothing.

    Raises
    ------
    InputError
        For a wrong volume, channel recipe, window, weights or device.
    MismatchError
        When the store named by the options was made by another spec.
    """
    seen = survey(options, progress)
    volume, preprocess, grid, table = seen.volume, seen.preprocess, seen.grid, seen.table
    device = resolve_device(options.device)
    weights = resolve_weights(options.model, options.checkpoint, progress=progress)
    spec = EncodeSpec(
        model_type=weights.model_type,
        encoder_digest=weights.encoder_digest,
        precision=resolve_precision(options.precision, device),
        preprocess=preprocess,
        volume=volume_identity(volume, grid, preprocess),
        grid=grid,
        store_dtype=options.store_dtype,
    )
    path = _store_path(options, volume, spec)
    store = _store_at(path)
    if store is not None:
        if not volume.uniform and is_sampled(options.window):
            spec = replace(spec, preprocess=replace(preprocess, window=store.spec.preprocess.window))
        _require_same(store, spec)
    images: tuple[ImageRecord, ...] = ()
    if isinstance(volume, ImageVolume):
        if store is not None:
            volume = volume.reordered([record.name for record in store.images])
        images = _image_table(volume, store)
        table = tile_table(volume, preprocess, grid, [(image.height, image.width) for image in images])
    job = EncodeJob(options, volume, weights, spec, table, seen.selection, images, path, store, device)
    return job if store is None else replace(job, options=replace(options, shard_tiles=store.shard_tiles))


def _store_path(options: EncodeOptions, volume: Volume, spec: EncodeSpec) -> Path:
    if options.store is not None:
        return Path(options.store).absolute()
    digest = spec.fingerprint.removeprefix("sha256:")
    if not volume.uniform:
        # An image folder's identity is per image, so its path keeps two folders of one name apart; and a window
        # sampled from the images changes with every image added, so its words stand for it.
        words = replace(spec, preprocess=replace(spec.preprocess, window=(0.0, 1.0)))
        digest = digest_json([words.fingerprint, options.window, volume.source])
    tile = "full" if options.tile is None else f"t{options.tile}"
    stem = Path(volume.source).name.split(".")[0] or "volume"
    name = f"{stem}-{options.model}-{tile}-{digest[:FINGERPRINT_LETTERS]}.zarr"
    return Path(options.cache_dir).absolute() / name


def _store_at(path: Path) -> EmbeddingStore | None:
    try:
        there = (path / GROUP_FILE).exists()
    except OSError as error:
        raise storage_error(error, path) from error
    # None: EmbeddingStore.create refuses a folder that holds something else
    return EmbeddingStore.open(path) if there else None


def _require_same(store: EmbeddingStore, spec: EncodeSpec) -> None:
    differences = store.spec.differences(spec)
    if differences:
        raise MismatchError(
            f"{store.path} holds embeddings made in another way than this command would make them. "
            "Nothing was written.",
            differences=differences,
            hint="Use the same volume and options as before (--like STORE takes them over), or another --store.",
        )


def _image_table(volume: ImageVolume, store: EmbeddingStore | None) -> tuple[ImageRecord, ...]:
    recorded = {} if store is None else {record.name: record for record in store.images}
    table: list[ImageRecord] = []
    changed: dict[str, tuple[object, object]] = {}
    for plane in range(volume.n_planes):
        name = volume.plane_name(plane)
        known = recorded.get(name)
        if known is not None and not volume.has(plane):
            table.append(known)  # recorded once, no longer in the folder: its embeddings stay usable
            continue
        now = volume.image_record(plane)
        if known is not None and known != now:
            changed[name] = (known.to_dict(), now.to_dict())
        table.append(now)
    if changed:
        raise MismatchError(
            f"{volume.source}: {len(changed)} image(s) changed since they were encoded. Nothing was written.",
            differences=changed,
            hint="Give a changed image a new name, or encode into another --store.",
        )
    return tuple(table)


def device_name(device: torch.device) -> str:
    """``cpu``, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
