"""Turns a changed volume into the same store again: ``--changed reencode``.

All recorded tiles are compared with the volume, under the store's lock. One journal record then takes the new
identity over and says which tiles are stale, at once; from there on these are missing tiles like any others, and
the ordinary way encodes them. A kill before the record leaves everything as it was, one after it leaves tiles
missing; the same command goes on from either.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from embedcache.encode.empty import is_empty, threshold_of
from embedcache.encode.identity.comparing import (
    Comparison,
    comparable,
    compare,
    planes_in_words,
    readable_now,
)
from embedcache.encode.prepare import EncodeJob
from embedcache.geometry import Tile
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore, StoreWriter


def take_over_changes(
    job: EncodeJob,
    store: EmbeddingStore,
    writer: StoreWriter,
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare every recorded tile with the volume and mark those that changed as not encoded.

    Parameters
    ----------
    job : EncodeJob
        Prepared with ``--changed reencode``.
    store, writer : EmbeddingStore, StoreWriter
        The store, held for writing as a whole.
    progress : Progress
        Told what is compared and what was found.
    between : callable
        Called between tiles; may raise to end the comparison, with nothing changed.

    Returns
    -------
    Comparison
        Tiles compared, and those that changed.

    Raises
    ------
    VolumeError
        When a recorded tile cannot be read now; nothing was changed.
    """
    numbers = comparable(store, job.volume)
    found = compare(store, job.volume, job.preprocess, numbers, progress, between)
    stale = np.zeros(len(store), dtype=np.bool_)
    stale[list(found.changed)] = True
    filled = _no_longer_empty(job, store, between)
    stale[filled] = True
    images = [
        (index, record)
        for index, (record, known) in enumerate(zip(job.images, store.images, strict=False))
        if record != known
    ]
    volume = None if job.spec.volume == store.spec.volume else job.spec.volume
    if stale.any() or images or volume is not None:
        writer.change_source(volume, images, stale)
        _say(store, found, len(filled), progress)
    return found


def _no_longer_empty(
    job: EncodeJob, store: EmbeddingStore, between: Callable[[], None]
) -> npt.NDArray[np.int64]:
    """Tiles that were skipped as empty and hold something now: no digest of them is needed."""
    filled = []
    reasons = store.skip_reasons
    for number in readable_now(store, job.volume, np.flatnonzero(store.skipped)).tolist():
        pixels = job.preprocess.read(job.volume, Tile(*map(int, store.table[number])))
        if not is_empty(pixels, threshold_of(reasons[number])):
            filled.append(number)
        between()
    return np.array(filled, dtype=np.int64)


def _say(store: EmbeddingStore, found: Comparison, filled: int, progress: Progress) -> None:
    if not found.changed and not filled:
        progress.say(
            f"{store.path}: the pixels of all {found.compared} recorded tiles are as they were; the store takes "
            "the volume's new identity over."
        )
        return
    where = f" ({planes_in_words(store, found.changed)})" if found.changed else ""
    empty = f", {filled} that were empty hold something now" if filled else ""
    progress.say(
        f"The pixels of {len(found.changed)} of {found.compared} recorded tiles changed{where}{empty}; these are "
        "encoded anew."
    )
