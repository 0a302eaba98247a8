"""Turns recorded pixel digests and today's volume into a verdict: the same source, or a ``MismatchError``.

Before embeddings are reused, a sample of recorded tiles is read again: another one each time, so that repeated
runs see all of them in the end; ``--seed`` repeats one. A sample finds a change of a share ``f`` of the tiles with
probability ``1 − (1 − f)^n``; all tiles are compared with ``--check-pixels all``.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.encode.identity.comparing import comparable, compare, planes_in_words
from embedcache.encode.identity.refusals import ways_out
from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.errors import MismatchError
from embedcache.progress import Progress

NAMED_TILES = 10


@dataclass(frozen=True)
class PixelCheck:
    """What was compared, and found unchanged.

    Parameters
    ----------
    compared, recorded : int
        Tiles that were read again, and those of the selection that could have been.
    seed : int or None
        Of their choice; None where all were taken.
    """

    compared: int = 0
    recorded: int = 0
    seed: int | None = None


def check_pixels(job: EncodeJob, plan: EncodePlan, progress: Progress) -> PixelCheck:
    """Compare recorded tiles with the volume.

    Raises
    ------
    MismatchError
        Naming the planes and tiles whose pixels changed.
    """
    store = job.store
    if store is None:
        return PixelCheck()
    recorded = comparable(store, job.volume, plan.selected)
    numbers, seed = drawn(recorded, job.options.check_pixels, job.options.seed)
    found = compare(store, job.volume, job.preprocess, numbers, progress)
    if found.changed:
        tiles = dict(list(found.changed.items())[:NAMED_TILES])
        raise MismatchError(
            f"{job.volume.source}: the pixels of {len(found.changed)} of {found.compared} compared tiles changed "
            f"since they were encoded ({planes_in_words(store, found.changed)}). "
            f"{'' if seed is None else f'They were drawn with --seed {seed}. '}Nothing was written.",
            differences={store.describe(number): digests for number, digests in tiles.items()},
            hint=ways_out(store.path, {}, job.options),
        )
    return PixelCheck(found.compared, len(recorded), seed)


def drawn(
    numbers: npt.NDArray[np.int64], wanted: int | None, seed: int | None
) -> tuple[npt.NDArray[np.int64], int | None]:
    """The ``wanted`` ones of these tiles that a seed draws, and the seed; all, without one, for None."""
    if wanted is None or wanted >= len(numbers):
        return numbers, None
    seed = secrets.randbits(32) if seed is None else seed
    return np.sort(np.random.default_rng(seed).choice(numbers, wanted, replace=False)), seed
