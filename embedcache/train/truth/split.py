"""Turns stores and labels into training and validation tiles that share nothing.

Neighbouring planes and overlapping tiles look alike: split at random, validation measures memory. So whole
stores, whole images, a slab of planes with a gap, or a block of the plane with a gap are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedcache.errors import LabelError
from embedcache.files import digest_json
from embedcache.store import EmbeddingStore
from embedcache.train.truth.choice import Kind
from embedcache.train.truth.held_out import choose
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.places import Ints, gather

Part = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Split:
    """Which tiles train and which validate.

    Parameters
    ----------
    kind : "stores", "images", "planes", "spatial", "overfit" or "mask"
    rule : str
        The rule in words, with its gap.
    train, val : tuple of (store index, tile numbers)
    stores : tuple of str
        What the stores are, by :func:`store_identity`, in the order of the indices.
    """

    kind: Kind
    rule: str
    train: Part
    val: Part
    stores: tuple[str, ...]

    def of_store(self, part: str, store: EmbeddingStore) -> Ints | None:
        """Tile numbers of a store in ``val`` or ``train``; None when the split is not of this store."""
        indices = [index for index, known in enumerate(self.stores) if _is(store, known)]
        chosen = self.val if part == "val" else self.train
        numbers = [number for index, found in chosen if index in indices for number in found]
        return np.array(sorted(set(numbers)), dtype=np.int64) if indices else None

    def index_of(self, store: EmbeddingStore) -> int | None:
        """The first index of a store; None when the split is not of it."""
        return next((index for index, known in enumerate(self.stores) if _is(store, known)), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; recorded in the run and its checkpoints."""
        return {
            "kind": self.kind,
            "rule": self.rule,
            "train": [[index, list(numbers)] for index, numbers in self.train],
            "val": [[index, list(numbers)] for index, numbers in self.val],
            "stores": list(self.stores),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Split:
        """Back from :meth:`to_dict`."""
        train, val = (
            tuple((int(index), tuple(int(n) for n in numbers)) for index, numbers in value[part])
            for part in ("train", "val")
        )
        return cls(value["kind"], value["rule"], train, val, tuple(value["stores"]))


def store_identity(store: EmbeddingStore) -> str:
    """Fingerprint of a store; for an image collection its images too, which its fingerprint leaves out."""
    if store.uniform:
        return store.fingerprint
    return f"{store.fingerprint}/{len(store.images)}/{_images_digest(store, len(store.images))}"


def _images_digest(store: EmbeddingStore, count: int) -> str:
    return digest_json([record.to_dict() for record in store.images[:count]])


def _is(store: EmbeddingStore, identity: str) -> bool:
    """Whether an identity is that of a store; images that were added since do not matter."""
    fingerprint, *images = identity.split("/")
    if fingerprint != store.fingerprint:
        return False
    return not images or (
        len(store.images) >= int(images[0]) and _images_digest(store, int(images[0])) == images[1]
    )


def make_split(
    stores: EmbeddingStore | Sequence[EmbeddingStore], labels: Labels | Sequence[Labels], spec: str = "auto"
) -> Split:
    """Split the encoded, labelled tiles of one or several stores.

    Parameters
    ----------
    stores, labels
        One of each, or as many of each.
    spec : str
        ``auto``: the last of several stores; the last fifth of the images; the last fifth of the planes,
        after a gap; or, for one plane and for one label on all planes, a block of the plane, after a gap of a
        tile and its overlap; where labels have a validation mask, what it touches. ``store:f2``: a store by the
        name of its volume, of its folder, or by its number. ``16:20``: these planes. ``a,b``: images by name or
        stem. ``0.2``: another share.

    Raises
    ------
    LabelError
        When no place for validation has positives, or none is left to train on.
    ConfigError
        When ``spec`` is none of these, or names what is not there.
    """
    store_list = [stores] if isinstance(stores, EmbeddingStore) else list(stores)
    label_list = [labels] if isinstance(labels, Labels) else list(labels)
    tiles = gather(store_list, label_list)
    if not tiles.positive.any():
        raise LabelError("No encoded tile has anything positive in its labels, so there is nothing to learn.")
    choice = choose(store_list, label_list, tiles, spec.strip())
    return Split(
        choice.kind,
        choice.rule,
        tiles.part(choice.train),
        tiles.part(choice.val),
        tuple(store_identity(store) for store in store_list),
    )
