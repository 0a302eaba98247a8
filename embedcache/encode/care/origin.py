"""Turns a store's provenance into what it was made from: volume, weights, a tile's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from embedcache.errors import EmbedcacheError, InputError, MismatchError, VolumeError, WeightsError, command
from embedcache.progress import Progress
from embedcache.sam.encoder import Encoder, Precision, resolve_precision
from embedcache.sam.weights import Weights, resolve_weights
from embedcache.store import EmbeddingStore
from embedcache.volume import ImageVolume, Volume, open_volume, pixel_digest

AGAINST = "--against"
"""How ``verify`` calls the option that names a volume; ``repair`` calls it ``--volume``."""


@dataclass(frozen=True)
class TilePixels:
    """One recorded tile, read again.

    Parameters
    ----------
    number : int
        Tile number.
    digest : str
        Of its pixels as they are now; empty when they cannot be read.
    recorded : str
        Of the pixels that were encoded.
    input : (3, 1024, 1024) float32 or None
        SAM's input, where the pixels are the ones that were encoded.
    """

    number: int
    digest: str
    recorded: str
    input: npt.NDArray[np.float32] | None

    @property
    def changed(self) -> bool:
        """Whether these are not the pixels that were encoded."""
        return self.digest != self.recorded


def source_of(store: EmbeddingStore, volume: str | None, option: str) -> Volume:
    """Open the volume that a store was made from, or the one named instead of it (by the ``option`` so called).

    Raises
    ------
    InputError
        When it is not there or cannot be opened.
    MismatchError
        When its planes are not of the store's number and size, so that tiles cannot be compared.
    """
    recorded = store.provenance.get("source")
    path = volume or recorded
    if not isinstance(path, str):
        raise InputError(f"{store.path} does not say what it was made from.", hint=f"Name it with {option}.")
    try:
        opened = open_volume(path, level=_level(store))
    except VolumeError as error:
        named = "" if volume else f"The volume that {store.path} was made from: "
        raise VolumeError(named + error.message, hint=f"Name it with {option} where it has moved.") from error
    if isinstance(opened, ImageVolume) and not store.uniform:
        return opened.reordered([record.name for record in store.images])
    _require_shape(store, opened)
    return opened


def _level(store: EmbeddingStore) -> int:
    level = store.spec.volume.get("level", 0)
    return level if isinstance(level, int) else 0


def _require_shape(store: EmbeddingStore, volume: Volume) -> None:
    recorded = store.spec.volume.get("shape")
    found = [volume.n_planes, *volume.plane_size(0)] if volume.uniform else None
    if recorded != found:
        raise MismatchError(
            f"{volume.source} cannot be the volume of {store.path}.",
            differences={"shape": (recorded, found)},
            hint="Name the volume that the store was made from.",
        )


def weights_of(store: EmbeddingStore, checkpoint: str | None, progress: Progress) -> Weights:
    """Load the weights that a store was made with; others are refused.

    Raises
    ------
    WeightsError
        When they cannot be found.
    MismatchError
        When they are not the store's.
    """
    recorded = store.provenance.get("weights", "auto")
    name = checkpoint or str(recorded)
    try:
        weights = resolve_weights(store.spec.model_type, name, progress=progress)
    except WeightsError as error:
        hint = error.hint if checkpoint else "Name the checkpoint with --checkpoint where it has moved."
        raise WeightsError(error.message, hint=hint) from error
    if weights.encoder_digest != store.spec.encoder_digest:
        raise MismatchError(
            f"{name} is not the encoder that {store.path} was made with.",
            differences={"encoder_digest": (store.spec.encoder_digest, weights.encoder_digest)},
            hint="Name the checkpoint that the store was made with: --checkpoint.",
        )
    return weights


def encoder_of(
    store: EmbeddingStore, weights: Weights, device: torch.device, numerics: int | None
) -> Encoder:
    """The encoder under numerics of the store (by position; None: the store's first ones)."""
    precision: Precision = resolve_precision(store.spec.precision, device)
    known = store.state.numerics
    asked = known[numerics or 0] if known else None
    return Encoder(weights, device=device, precision=precision, numerics=asked)


def read_again(store: EmbeddingStore, volume: Volume, number: int, recorded: str) -> TilePixels:
    """Read a recorded tile's pixels; they become an input only where they are the ones that were encoded."""
    tile = store.tile(number)
    if isinstance(volume, ImageVolume) and not volume.has(tile.plane):
        return TilePixels(number, "", recorded, None)
    try:
        pixels = store.spec.preprocess.read(volume, tile)
    except (
        EmbedcacheError,
        OSError,
        ValueError,
        RuntimeError,
    ):  # decoders of damaged chunks raise all of these
        return TilePixels(number, "", recorded, None)
    digest = pixel_digest(pixels)
    usable = store.spec.preprocess.to_input(pixels) if digest == recorded else None
    return TilePixels(number, digest, recorded, usable)


def command_words(store: EmbeddingStore, volume: str | None, checkpoint: str | None) -> str:
    """The ``repair`` command for a store, with what has to be named."""
    words = ["--volume", volume or store.provenance.get("source") or "VOLUME"]
    words += ["--checkpoint", checkpoint or store.provenance.get("weights") or "CHECKPOINT"]
    return command("repair", store.path, *words)


def take_over_words(store: EmbeddingStore, volume: str | None) -> str:
    """The ``encode`` command that takes changed pixels over into a store."""
    source = volume or store.provenance.get("source") or "VOLUME"
    words = ("--volume", source, "--store", store.path, "--like", store.path, "--changed", "reencode")
    return command("encode", *words)
