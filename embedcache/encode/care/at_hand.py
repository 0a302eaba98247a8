"""Turns what the end of a long check will need into an early refusal: volume, weights, device, enough tiles."""

from __future__ import annotations

from embedcache.encode.care.fidelity import drawn
from embedcache.encode.care.origin import AGAINST, source_of, weights_of
from embedcache.progress import Progress
from embedcache.sam.encoder import resolve_device
from embedcache.store import EmbeddingStore


def require_volume(store: EmbeddingStore, volume: str | None) -> None:
    """Refuse a volume that cannot be compared with a store.

    Raises
    ------
    InputError
        When it is not there or cannot be opened.
    MismatchError
        When its planes are not of the store's number and size.
    """
    with source_of(store, volume, AGAINST):
        pass


def require_certifiable(
    store: EmbeddingStore,
    count: int,
    *,
    volume: str | None,
    checkpoint: str | None,
    device: str,
    progress: Progress,
) -> None:
    """Refuse what :func:`~embedcache.encode.care.fidelity.certify` would refuse before its first tile.

    Raises
    ------
    InputError
        When there is no committed tile, or volume, weights or device cannot be found.
    MismatchError
        When volume or weights are not the ones that the store was made with.
    """
    drawn(store, count, seed=0)
    resolve_device(device)
    require_volume(store, volume)
    weights_of(store, checkpoint, progress)
