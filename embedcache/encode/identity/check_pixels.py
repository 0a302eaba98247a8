"""Turns recorded pixel digests and today's volume into a verdict: the same source, or a ``MismatchError``.

Before embeddings are reused, a seeded sample of recorded tiles is read again. A sample finds a change of a share
``f`` of the tiles with probability ``1 − (1 − f)^n``; all tiles are compared with ``--check-pixels all``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embedcache.encode.identity.comparing import comparable, compare, planes_in_words
from embedcache.encode.identity.refusals import ways_out
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.errors import MismatchError
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore

NAMED_TILES = 10


def check_pixels(job: EncodeJob, plan: EncodePlan, progress: Progress) -> int:
    """Compare recorded tiles with the volume; return how many were compared.

    Raises
    ------
    MismatchError
        Naming the planes and tiles whose pixels changed.
    """
    store = job.store
    if store is None:
        return 0
    numbers = sample(store, comparable(store, job.volume, plan.selected), job.options.check_pixels)
    found = compare(store, job.volume, job.preprocess, numbers, progress)
    if found.changed:
        tiles = dict(list(found.changed.items())[:NAMED_TILES])
        raise MismatchError(
            f"{job.volume.source}: the pixels of {len(found.changed)} of {found.compared} compared tiles changed "
            f"since they were encoded ({planes_in_words(store, found.changed)}). Nothing was written.",
            differences={store.describe(number): digests for number, digests in tiles.items()},
            hint=ways_out(store.path, {}, job.options),
        )
    return found.compared


def sample(
    store: EmbeddingStore, numbers: npt.NDArray[np.int64], wanted: int | None
) -> npt.NDArray[np.int64]:
    """The ``wanted`` tiles of these that every look at the store takes; all for None."""
    if wanted is None or wanted >= len(numbers):
        return numbers
    seed = int(store.fingerprint.removeprefix("sha256:")[:16], 16)
    return np.sort(np.random.default_rng(seed).choice(numbers, wanted, replace=False))
