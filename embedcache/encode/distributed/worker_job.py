"""Turns a ``Briefing`` into the worker's own ``EncodeJob``: the same volume, weights and store, seen here."""

from __future__ import annotations

import copy
from pathlib import Path

from embedcache.encode.distributed.messages import Briefing
from embedcache.encode.identity.unchanged import Seen
from embedcache.encode.prepare import EncodeJob
from embedcache.encode.survey import open_source_of
from embedcache.errors import EmbedcacheError, MismatchError, WeightsError
from embedcache.sam.device import resolve_device
from embedcache.sam.parts import model_types
from embedcache.sam.weights import MODELS, Weights, resolve_weights
from embedcache.store import EmbeddingStore
from embedcache.volume import ImageVolume, Selection, Volume, volume_identity


def open_job(briefing: Briefing) -> EncodeJob:
    """Open what the coordinator has opened, and see that it is the same; nothing is written.

    Raises
    ------
    InputError
        When this machine does not see the volume, the store or the weights, or has no such device.
    MismatchError
        When it sees others under the same paths.
    """
    options = briefing.options
    device = resolve_device(options.device)
    store = _open_store(briefing)
    volume = _open_volume(briefing, store)
    weights = _weights(briefing, store)
    return EncodeJob(
        options=options,
        volume=volume,
        weights=weights,
        spec=store.spec,
        table=store.table,
        selection=Selection(),
        images=tuple(store.images),
        store_path=store.path,
        store=store,
        device=device,
        words={},
        seen=Seen(store.fingerprint),
        segments=store.state.segments,
    )


def named(error: EmbedcacheError, host: str) -> EmbedcacheError:
    """The same error, saying on which host a worker met it."""
    said = copy.copy(error)  # whatever else it carries comes along
    said.message = f"Worker on {host}: {error.message}"
    said.args = (said.message,)
    return said


def _open_store(briefing: Briefing) -> EmbeddingStore:
    store = EmbeddingStore.open(Path(briefing.store))
    if store.fingerprint != briefing.fingerprint:
        raise MismatchError(
            f"{briefing.store} is another store here than on the coordinator's machine.",
            differences={"fingerprint": (briefing.fingerprint, store.fingerprint)},
            hint="All workers must see one file system under the same path.",
        )
    return store


def _open_volume(briefing: Briefing, store: EmbeddingStore) -> Volume:
    options = briefing.options
    volume = open_source_of(options)
    if isinstance(volume, ImageVolume):
        return volume.reordered([record.name for record in store.images])
    found = volume_identity(volume, store.spec.grid, store.spec.preprocess)
    recorded = store.spec.volume
    if found != recorded:
        raise MismatchError(
            f"{options.volume} is another volume here than on the coordinator's machine.",
            differences={
                name: (recorded.get(name), found.get(name))
                for name in sorted({*found, *recorded})
                if found.get(name) != recorded.get(name)
            },
            hint="All workers must see one file system under the same path.",
        )
    return volume


def _weights(briefing: Briefing, store: EmbeddingStore) -> Weights:
    options = briefing.options
    checkpoint = briefing.checkpoint
    if Path(checkpoint).is_absolute() and not Path(checkpoint).is_file():
        raise WeightsError(
            f"There is no checkpoint {checkpoint}.",
            hint="All workers must see the weights under the same path.",
        )
    if options.model not in MODELS and options.model not in model_types():
        raise WeightsError(
            f"There is no model {options.model!r} here.",
            hint="A registered encoder must be registered in every worker too: name the module that does it in "
            "DASK_DISTRIBUTED__WORKER__PRELOAD, or with `dask worker --preload`.",
        )
    weights = resolve_weights(options.model, checkpoint)
    if weights.encoder_digest != store.spec.encoder_digest:
        raise MismatchError(
            f"{checkpoint} holds other weights here than on the coordinator's machine.",
            differences={"encoder_digest": (store.spec.encoder_digest, weights.encoder_digest)},
        )
    return weights
