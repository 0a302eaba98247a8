"""Turns labels and a store into the tiles a training needs, and refuses when some are not encoded yet."""

from __future__ import annotations

import shlex

import numpy as np
import numpy.typing as npt

from embedcache.errors import EmbedcacheError, MissingTilesError, counted
from embedcache.files import living_claims
from embedcache.remote import is_remote
from embedcache.store import EmbeddingStore
from embedcache.store.layout import JOURNAL
from embedcache.train.truth.labels import Labels


def needed_tiles(store: EmbeddingStore, labels: Labels) -> npt.NDArray[np.int64]:
    """Numbers of the tiles that training on these labels needs.

    All wanted tiles that the labels touch, and those with positives even where nobody asked for them yet. One
    label for all planes asks for the wanted planes only; tiles that were skipped as empty are not needed.
    """
    touched = labels.tiles(store)
    if labels.same_for_all_planes and store.wanted.any():
        planes = np.unique(np.asarray(store.table)[store.wanted, 0])
        touched = touched[np.isin(np.asarray(store.table)[touched, 0], planes)]
    touched = touched[~store.skipped[touched]]
    unasked = touched[~store.wanted[touched] & ~store.committed[touched]]
    idle = unasked[labels.positive(store, unasked) == 0]
    return np.setdiff1d(touched, idle)


def require_tiles(store: EmbeddingStore, labels: Labels, *, allow_partial: bool) -> str | None:
    """Refuse when a needed tile is missing.

    Returns
    -------
    str or None
        With ``allow_partial``, a sentence on what is left out; None when nothing is.

    Raises
    ------
    MissingTilesError
        With the ``encode`` command for exactly the missing tiles' planes and box.
    """
    needed = needed_tiles(store, labels)
    missing = needed[~store.committed[needed]]
    if len(missing) == 0:
        return None
    found = len(needed) - len(missing)
    if allow_partial and found:
        return (
            f"{len(missing)} of {counted(len(needed), 'tile')} that the labels touch: not encoded, left out."
        )
    raise _refusal(store, labels, missing, found)


def _refusal(
    store: EmbeddingStore, labels: Labels, missing: npt.NDArray[np.int64], found: int
) -> MissingTilesError:
    count, source = len(missing), labels.source
    wrong = f"{store.address} lacks {count} of {counted(count + found, 'tile')} that {source} touches."
    if not found:
        wrong = f"Nothing that {source} touches is encoded in {store.address} yet: {counted(count, 'tile')}."
    ways = [f"Encode them: {encode_command(store, missing)}"]
    writers = _writers(store)
    if writers:
        wrong += f"\n{writers[0].upper()}{writers[1:]}."
        ways.insert(0, "Wait until it has finished" + (", or:" if found else " or has committed some, or:"))
    if found:
        ways.append("Or train on those that are there: --allow-partial")
    return MissingTilesError(wrong, hint="\n".join(ways))


def _writers(store: EmbeddingStore) -> str:
    """Who is writing the store just now, in words; nothing where that cannot be told."""
    if is_remote(store.address):
        return ""
    try:
        claims = living_claims(store.path / JOURNAL, guarded=store.path)
    except EmbedcacheError:  # read-only, or on a disk without locks: it is only told, nothing depends on it
        return ""
    return "; ".join(claim.sentence for claim in claims)


def encode_command(store: EmbeddingStore, numbers: npt.NDArray[np.int64]) -> str:
    """The ``encode`` command that adds tiles to a store: the planes and the box they lie in."""
    rows = np.asarray(store.table)[numbers]
    planes = np.unique(rows[:, 0])
    steps = np.unique(np.diff(planes)) if len(planes) > 1 else np.array([1])
    step = f":{steps[0]}" if len(steps) == 1 and steps[0] > 1 else ""
    words = ["embedcache", "encode", "--volume", str(store.provenance.get("source") or "VOLUME")]
    words += ["--store", str(store.path), "--like", str(store.path)]
    words += ["--z-range", f"{planes[0]}:{planes[-1] + 1}{step}"]
    low, high = rows[:, 1:3].min(axis=0), (rows[:, 1:3] + rows[:, 3:5]).max(axis=0)
    whole = all(tuple(high) >= store.plane_size(int(plane)) for plane in planes) and not low.any()
    if not whole:
        words += ["--bbox", f"{low[0]}:{high[0]},{low[1]}:{high[1]}"]
    return shlex.join(words)
