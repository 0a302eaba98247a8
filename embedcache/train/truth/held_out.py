"""Turns a table of labelled tiles into two parts that share nothing: the rules of what is held out."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from embedcache.errors import ConfigError, counted
from embedcache.store import EmbeddingStore
from embedcache.train.truth.choice import Choice, first_useful
from embedcache.train.truth.labels import Labels
from embedcache.train.truth.naming import is_called, named_images, require_images
from embedcache.train.truth.places import Tiles
from embedcache.train.truth.whole_stores import STORE, held_by_mask, kin, last_store, named_stores

HELD_OUT = 0.2
GAP = 0.05


def choose(stores: list[EmbeddingStore], labels: list[Labels], tiles: Tiles, spec: str) -> Choice:
    """What ``--val`` or a validation mask holds out; see :func:`embedcache.train.truth.split.make_split`."""
    if any(label.validation_source for label in labels):
        if spec != "auto":
            raise ConfigError(
                f"--val {spec} and a validation mask were given; each says what is held out.",
                hint="Leave one of them out; --validation none takes no mask that lies beside the labels.",
            )
        return held_by_mask(stores, labels, tiles)
    if spec.startswith(STORE):
        return named_stores(stores, tiles, spec)
    share = HELD_OUT
    if re.fullmatch(r"0?\.\d+", spec):
        share = float(spec)
        if not 0.0 < share < 1.0:
            raise ConfigError(f"--val is {spec}; a share lies between 0 and 1.")
    elif re.fullmatch(r"\d*:\d*", spec):
        return _given_planes(labels, tiles, spec)
    elif spec != "auto":
        return _given_images(stores, tiles, spec)
    elif len(set(families := kin(stores))) > 1:
        return last_store(tiles, families)
    if len({store.uniform for store in stores}) > 1:
        raise ConfigError(
            f"--val {spec}: a share of arrays and image collections together is not defined.",
            hint="Leave --val out to hold a whole store out, or name images.",
        )
    candidates: Iterator[Choice]
    if not stores[0].uniform:
        candidates = _images(stores, tiles, share)
    elif len(set(tiles.plane.tolist())) > 1 and not any(item.same_for_all_planes for item in labels):
        candidates = _slabs(stores, tiles, share)
    else:
        candidates = _blocks(stores, tiles, share)
    return first_useful(candidates, tiles)


def _windows(count: int, share: float) -> Iterator[tuple[int, int]]:
    """Runs of a share of ``count``, the last first, then moving towards the start."""
    size = max(1, round(count * share))
    for start in range(count - size, -1, -1):
        yield start, start + size


def _images(stores: list[EmbeddingStore], tiles: Tiles, share: float) -> Iterator[Choice]:
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
        yield Choice(
            "images", f"{len(chosen)} of {len(images)} images are held out whole: {names}", ~val, val
        )


def _slabs(stores: list[EmbeddingStore], tiles: Tiles, share: float) -> Iterator[Choice]:
    planes = np.unique(tiles.plane)
    gap = max(1, round(len(planes) * GAP), 2 * max(_plane_reach(store) for store in stores))
    for start, end in _windows(len(planes), share):
        first, last = int(planes[start]), int(planes[end - 1])
        val = (tiles.plane >= first) & (tiles.plane <= last)
        train = (tiles.plane < first - gap) | (tiles.plane > last + gap)
        held = f"plane {first} is" if first == last else f"planes {first} to {last} are"
        beside = "it" if first == last else "them"
        rule = f"{held} held out, with a gap of {gap} beside {beside}, of {counted(len(planes), 'plane')}"
        yield Choice("planes", rule, train, val)


def _plane_reach(store: EmbeddingStore) -> int:
    """How many planes beside its own a tile's input saw."""
    match = re.fullmatch(r"adjacent(?::(\d+))?", store.spec.preprocess.channels)
    return int(match.group(1) or 1) if match else 0


def _blocks(stores: list[EmbeddingStore], tiles: Tiles, share: float) -> Iterator[Choice]:
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


def _block(tiles: Tiles, axis: int, first: int, last: int, gap: int, full: int) -> Choice:
    begin = tiles.corner[:, axis]
    end = begin + tiles.extent[:, axis]
    val = (begin >= first) & (begin <= last)
    val_end = int(end[val].max())
    train = (end <= first - gap) | (begin >= val_end + gap)
    name = "rows" if axis == 0 else "columns"
    beside = f"a gap of {gap} px beside them" if gap else f"no gap (there is no room for one of {full} px)"
    return Choice(
        "spatial",
        f"{name} {first} to {val_end} px are held out on all planes, with {beside}",
        train,
        val,
    )


def _given_planes(labels: list[Labels], tiles: Tiles, spec: str) -> Choice:
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
    return first_useful([Choice("planes", rule, ~val, val)], tiles)


def _given_images(stores: list[EmbeddingStore], tiles: Tiles, spec: str) -> Choice:
    val = np.zeros(len(tiles.number), bool)
    places = sorted(set(zip(tiles.store.tolist(), tiles.plane.tolist(), strict=True)))
    names = [stores[index].plane_name(plane) for index, plane in places]
    require_images(spec, names, "encoded, labelled image of the store")
    for word in named_images(spec):
        for (index, plane), name in zip(places, names, strict=True):
            if is_called(word, name):
                val |= (tiles.store == index) & (tiles.plane == plane)
    return first_useful([Choice("images", f"held out as asked: {spec}", ~val, val)], tiles)
