"""Turns stores and labels into training and validation tiles that share nothing.

Neighbouring planes and overlapping tiles look alike: split at random, validation measures memory. So whole
stores, whole images, a slab of planes with a gap, or a block of the plane with a gap are held out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, LabelError, counted
from embedcache.files import digest_json
from embedcache.store import EmbeddingStore
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.places import Ints, Tiles, gather

HELD_OUT = 0.2
GAP = 0.05

Kind = Literal["stores", "images", "planes", "spatial", "overfit"]
Part = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Split:
    """Which tiles train and which validate.

    Parameters
    ----------
    kind : "stores", "images", "planes", "spatial" or "overfit"
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


@dataclass(frozen=True)
class _Choice:
    kind: Kind
    rule: str
    train: npt.NDArray[np.bool_]
    val: npt.NDArray[np.bool_]


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
        tile and its overlap. ``16:20``: these planes. ``a,b``: images by name or stem. ``0.2``: another share.

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
    choice = _choose(store_list, label_list, tiles, spec.strip())
    return Split(
        choice.kind,
        choice.rule,
        tiles.part(choice.train),
        tiles.part(choice.val),
        tuple(store_identity(store) for store in store_list),
    )


def _choose(stores: list[EmbeddingStore], labels: list[Labels], tiles: Tiles, spec: str) -> _Choice:
    share = HELD_OUT
    if re.fullmatch(r"0?\.\d+", spec):
        share = float(spec)
        if not 0.0 < share < 1.0:
            raise ConfigError(f"--val is {spec}; a share lies between 0 and 1.")
    elif re.fullmatch(r"\d*:\d*", spec):
        return _given_planes(labels, tiles, spec)
    elif spec != "auto":
        return _given_images(stores, tiles, spec)
    elif len(set(kin := _kin(stores))) > 1:
        return _whole_stores(tiles, kin)
    if len({store.uniform for store in stores}) > 1:
        raise ConfigError(
            f"--val {spec}: a share of arrays and image collections together is not defined.",
            hint="Leave --val out to hold a whole store out, or name images.",
        )
    candidates: Iterator[_Choice]
    if not stores[0].uniform:
        candidates = _images(stores, tiles, share)
    elif len(set(tiles.plane.tolist())) > 1 and not any(item.same_for_all_planes for item in labels):
        candidates = _slabs(stores, tiles, share)
    else:
        candidates = _blocks(stores, tiles, share)
    return _first_useful(candidates, tiles)


def _first_useful(candidates: Iterable[_Choice], tiles: Tiles) -> _Choice:
    """The first candidate with positives on both sides."""
    tried = 0
    for choice in candidates:
        tried += 1
        if tiles.positive[choice.val].any() and tiles.positive[choice.train].any():
            return choice
    raise LabelError(
        f"No split leaves positives on both sides: tried for validation: {counted(tried, 'place')} among "
        f"{counted(len(tiles.number), 'tile')}, {int((tiles.positive > 0).sum())} of them with positives.",
        hint="Encode with smaller tiles (--tile 512), give more labels, or name the planes or images with --val.",
    )


def _kin(stores: list[EmbeddingStore]) -> list[int]:
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


def _whole_stores(tiles: Tiles, kin: list[int]) -> _Choice:
    """Hold out the last store, with the others of the same volume."""
    families = np.array(kin)[tiles.store]

    def choice(family: int) -> _Choice:
        val = families == family
        names = " and ".join(str(index + 1) for index, own in enumerate(kin) if own == family)
        return _Choice("stores", f"store {names} of {len(kin)} is held out", ~val, val)

    return _first_useful((choice(family) for family in dict.fromkeys(reversed(kin))), tiles)


def _windows(count: int, share: float) -> Iterator[tuple[int, int]]:
    """Runs of a share of ``count``, the last first, then moving towards the start."""
    size = max(1, round(count * share))
    for start in range(count - size, -1, -1):
        yield start, start + size


def _images(stores: list[EmbeddingStore], tiles: Tiles, share: float) -> Iterator[_Choice]:
    """Images by their bytes: the same one in two stores, or twice in one, is held out everywhere."""
    names_of: dict[str, str] = {}
    of_tile = []
    for index, plane in zip(tiles.store.tolist(), tiles.plane.tolist(), strict=True):
        record = stores[index].images[plane]
        names_of.setdefault(record.sha256, record.name)
        of_tile.append(record.sha256)
    images = list(names_of)
    for start, end in _windows(len(images), share):
        chosen = images[start:end]
        val = np.isin(of_tile, chosen)
        names = ", ".join(names_of[image] for image in chosen)
        yield _Choice(
            "images", f"{len(chosen)} of {len(images)} images are held out whole: {names}", ~val, val
        )


def _slabs(stores: list[EmbeddingStore], tiles: Tiles, share: float) -> Iterator[_Choice]:
    planes = np.unique(tiles.plane)
    gap = max(1, round(len(planes) * GAP), 2 * max(_plane_reach(store) for store in stores))
    for start, end in _windows(len(planes), share):
        first, last = int(planes[start]), int(planes[end - 1])
        val = (tiles.plane >= first) & (tiles.plane <= last)
        train = (tiles.plane < first - gap) | (tiles.plane > last + gap)
        held = f"plane {first} is" if first == last else f"planes {first} to {last} are"
        beside = "it" if first == last else "them"
        rule = f"{held} held out, with a gap of {gap} beside {beside}, of {counted(len(planes), 'plane')}"
        yield _Choice("planes", rule, train, val)


def _plane_reach(store: EmbeddingStore) -> int:
    """How many planes beside its own a tile's input saw."""
    match = re.fullmatch(r"adjacent(?::(\d+))?", store.spec.preprocess.channels)
    return int(match.group(1) or 1) if match else 0


def _blocks(stores: list[EmbeddingStore], tiles: Tiles, share: float) -> Iterator[_Choice]:
    """Blocks at the end of the longer axis first; first with the full gap, then with what there is room for."""
    size = int(max(tiles.extent[:, 0].max(), tiles.extent[:, 1].max()))
    full = size + max(store.spec.grid.overlap for store in stores)
    axes = sorted((0, 1), key=lambda axis: -len(np.unique(tiles.corner[:, axis])))
    for gap in (full, 0):
        for axis in axes:
            starts = np.unique(tiles.corner[:, axis])
            if len(starts) < 2:
                continue
            for first, last in _windows(len(starts), share):
                yield _block(tiles, axis, int(starts[first]), int(starts[last - 1]), gap, full)


def _block(tiles: Tiles, axis: int, first: int, last: int, gap: int, full: int) -> _Choice:
    begin = tiles.corner[:, axis]
    end = begin + tiles.extent[:, axis]
    val = (begin >= first) & (begin <= last)
    val_end = int(end[val].max())
    train = (end <= first - gap) | (begin >= val_end + gap)
    name = "rows" if axis == 0 else "columns"
    beside = f"a gap of {gap} px beside them" if gap else f"no gap (there is no room for one of {full} px)"
    return _Choice(
        "spatial",
        f"{name} {first} to {val_end} px are held out on all planes, with {beside}",
        train,
        val,
    )


def _given_planes(labels: list[Labels], tiles: Tiles, spec: str) -> _Choice:
    low, high = (int(part) if part else None for part in spec.split(":"))
    val = (tiles.plane >= (low or 0)) & (tiles.plane < (high if high is not None else np.iinfo(np.int64).max))
    if not val.any():
        raise ConfigError(
            f"--val {spec} holds no encoded, labelled plane; they lie in "
            f"{int(tiles.plane.min())}:{int(tiles.plane.max()) + 1}."
        )
    rule = f"planes {spec} are held out as asked; no gap was left beside them"
    if any(item.same_for_all_planes for item in labels):
        rule += ", and the same label lies on all planes: these places were trained on in other planes"
    return _first_useful([_Choice("planes", rule, ~val, val)], tiles)


def _given_images(stores: list[EmbeddingStore], tiles: Tiles, spec: str) -> _Choice:
    val = np.zeros(len(tiles.number), bool)
    for word in (part.strip() for part in spec.split(",")):
        found = np.zeros(len(tiles.number), bool)
        for index, plane in set(zip(tiles.store.tolist(), tiles.plane.tolist(), strict=True)):
            name = stores[index].plane_name(plane)
            if word in (name, PurePath(name).stem):
                found |= (tiles.store == index) & (tiles.plane == plane)
        if not found.any():
            raise ConfigError(
                f"--val names {word!r}, which is no encoded, labelled image of the store.",
                hint="Give planes as A:B, images by name or stem with commas between, or a share such as 0.2.",
            )
        val |= found
    return _first_useful([_Choice("images", f"held out as asked: {spec}", ~val, val)], tiles)
