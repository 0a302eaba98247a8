"""Turns a store's provenance into what results made from it carry on: where the data come from, and their grid."""

from __future__ import annotations

from typing import Any

from embedcache.store import EmbeddingStore
from embedcache.volume.origin import Origin, origin_of


def about_store(store: EmbeddingStore) -> dict[str, Any]:
    """``origin``, one entry per source, and ``geometry``, for the metadata of a prediction.

    Returns
    -------
    dict
        JSON values. Stores of earlier versions hold neither; their geometry is then empty.
    """
    recorded = store.provenance.get("geometry")
    geometry = dict(recorded) if isinstance(recorded, dict) else {}
    return {"origin": [store_origin(store).to_dict()], "geometry": geometry}


def store_origin(store: EmbeddingStore) -> Origin:
    """Where a store's data come from: as it was recorded, and for older stores what is known of their source."""
    recorded = store.provenance.get("origin")
    if isinstance(recorded, dict):
        return Origin.from_dict(recorded)
    licence = str(store.provenance.get("licence") or "")
    return origin_of(str(store.provenance.get("source") or ""), licence=licence, beside=False)
