"""Turns several stores into whole ones that are held out: the last, those that are named, or what a mask says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from embedcache.errors import ConfigError, LabelError, counted
from embedcache.store import EmbeddingStore
from embedcache.train.truth.choice import Choice, first_useful
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.places import Tiles
from embedcache.volume.layouts import source_stem

STORE = "store:"


def kin(stores: list[EmbeddingStore]) -> list[int]:
    """For each store the first one that shows the same volume or an image of it: they are never held apart."""
    shown = [
        {str(store.spec.volume)} if store.uniform else {record.sha256 for record in store.images}
        for store in stores
    ]
    first = list(range(len(stores)))
    for later in range(len(stores)):
        for earlier in range(later):
            if shown[earlier] & shown[later]:
                old, new = first[later], first[earlier]
                first = [new if index == old else index for index in first]
    return first


def last_store(tiles: Tiles, families: list[int]) -> Choice:
    """Hold out the last store, with the others of the same volume."""
    family_of = np.array(families)[tiles.store]

    def choice(family: int) -> Choice:
        val = family_of == family
        names = " and ".join(str(index + 1) for index, own in enumerate(families) if own == family)
        return Choice("stores", f"store {names} of {len(families)} is held out", ~val, val)

    return first_useful((choice(family) for family in dict.fromkeys(reversed(families))), tiles)


def named_stores(stores: Sequence[EmbeddingStore], tiles: Tiles, spec: str) -> Choice:
    """Hold out stores by name or number (``store:f2``, ``store:1,#3``), with the others of the same volumes.

    Raises
    ------
    ConfigError
        When a word names no store, or several, or nothing is left to train on.
    """
    asked = set(store_indices(stores, spec))
    families = kin(list(stores))
    held = {index for index, family in enumerate(families) if family in {families[one] for one in asked}}
    names = " and ".join(f"{index + 1} ({store_names(stores[index])[0]})" for index in sorted(held))
    if len(held) == len(stores):
        raise ConfigError(
            f"--val {spec} holds out {names}; with what shows the same volumes, no store is left to train on.",
            hint="Name fewer of them.",
        )
    val = np.isin(tiles.store, sorted(held))
    rule = f"store {names} of {len(stores)} is held out as asked"
    return first_useful([Choice("stores", rule, ~val, val)], tiles)


def store_names(store: EmbeddingStore) -> tuple[str, ...]:
    """What a store may be called: as its volume is, and as its own folder, with and without the ending."""
    folder = PurePath(store.address.rstrip("/")).name
    source = str(store.provenance.get("source") or "")
    names = [source_stem(source)] if source else []
    return tuple(dict.fromkeys([*names, folder.removesuffix(".zarr"), folder]))


def store_indices(stores: Sequence[EmbeddingStore], spec: str, called: Sequence[str] = ()) -> tuple[int, ...]:
    """The indices of the stores that ``store:f2,#3`` names, in its order.

    Parameters
    ----------
    stores : sequence of EmbeddingStore
    spec : str
    called : sequence of str
        What a data file calls them, in their order, empty where it does not say; these names come first.

    Raises
    ------
    ConfigError
        When a word names no store, or several.
    """
    words = [word.strip() for word in spec.removeprefix(STORE).split(",")]
    return tuple(_named(stores, word, spec, called) for word in words)


def _named(stores: Sequence[EmbeddingStore], word: str, spec: str, called: Sequence[str]) -> int:
    """The index of the store that a word means: a name first, then a number from 1; ``#2`` is always a number."""
    if word in called and word:
        return called.index(word)
    number = word.removeprefix("#")
    found = [index for index, store in enumerate(stores) if word == number and word in store_names(store)]
    if not found and number.isdecimal() and 1 <= int(number) <= len(stores):
        found = [int(number) - 1]
    if len(found) == 1:
        return found[0]
    names = [store_names(store)[:2] for store in stores]
    given = [*called, *[""] * (len(stores) - len(called))]
    names = [
        tuple(dict.fromkeys((own, *more) if own else more)) for own, more in zip(given, names, strict=True)
    ]
    listing = "\n".join(f"  {number}. {' or '.join(own)}" for number, own in enumerate(names, 1))
    which = f"{len(found)} stores are called {word!r}" if found else f"no store is called {word!r}"
    raise ConfigError(
        f"--val {spec}: {which}; there are:\n{listing}", hint="Give one of these names, or store:#N."
    )


def held_by_mask(stores: Sequence[EmbeddingStore], labels: Sequence[Labels], tiles: Tiles) -> Choice:
    """Hold out the tiles that validation masks touch, with the positives within them.

    What a tile holds outside of the mask counts in no figure. Tiles that touch a mask without anything that
    counts in it are left out altogether.

    Raises
    ------
    ConfigError
        When stores of one volume have different masks: one would train on what the other holds out.
    LabelError
        When nothing positive is held out, or left to train on.
    """
    _require_alike(stores, labels)
    touched, val = np.zeros((2, len(tiles.number)), np.bool_)
    positive = tiles.positive.copy()
    for index, label in enumerate(labels):
        if label.validation_source is None:
            continue
        inner = label.validating()
        own = np.flatnonzero(tiles.store == index)
        of_tiles = [stores[index].tile(int(tiles.number[row])) for row in own]
        touched[own] = [label.held_out(tile) for tile in of_tiles]
        if label.same_for_all_planes:  # what is held out on one plane would be learnt on another
            laid = [(tile.y0, tile.x0, tile.height, tile.width) for tile in of_tiles]
            places = {place for place, row in zip(laid, own, strict=True) if touched[row]}
            beside = np.array([place in places for place in laid], dtype=np.bool_)
        else:
            beside = touched[own]
        for tile, row in zip(of_tiles, own, strict=True):
            if touched[row]:
                positive[row], supervised = inner.counts(tile)
                val[row] = supervised > 0
        touched[own] |= beside
    masks = ", ".join(dict.fromkeys(label.validation_source for label in labels if label.validation_source))
    if not val.any():
        raise LabelError(
            f"The validation mask {masks} holds out nothing: no encoded tile has labels that count within it.",
            hint="Encode the tiles that it touches, or leave it out with --validation none.",
        )
    rule = f"the tiles that {masks} touches are held out, and only what lies within it counts in figures"
    if not positive[val].any() or not positive[~touched].any():
        side = "train on beside" if positive[val].any() else "validate within"
        raise LabelError(
            f"There is nothing positive to {side} the validation mask {masks}: {counted(int(val.sum()), 'tile')} "
            f"with labels that count in it, {int((~touched).sum())} that do not touch it.",
            hint="Give more labels, encode with smaller tiles, or leave it out with --validation none.",
        )
    return Choice("mask", rule, ~touched, val)


def _require_alike(stores: Sequence[EmbeddingStore], labels: Sequence[Labels]) -> None:
    families = kin(list(stores))
    for later, family in enumerate(families):
        masks = labels[family].validation_source, labels[later].validation_source
        if masks[0] != masks[1]:
            raise ConfigError(
                f"{stores[family].address} and {stores[later].address} show the same volume, but their "
                f"validation masks differ: {masks[0] or 'none'} and {masks[1] or 'none'}.",
                hint="Give both the same: one --validation for all stores, or one for each.",
            )
