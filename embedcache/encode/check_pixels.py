"""Turns recorded pixel digests and today's volume into a verdict: the same source, or a ``MismatchError``.

Before embeddings are reused, a seeded sample of recorded tiles is read again. A sample finds a change of a share
``f`` of the tiles with probability ``1 − (1 − f)^n``; all tiles are compared with ``--check-pixels all``.
"""

from __future__ import annotations

import numpy as np

from embedcache.encode.plan import EncodePlan
from embedcache.encode.prepare import EncodeJob
from embedcache.errors import MismatchError
from embedcache.geometry import Tile
from embedcache.progress import Progress
from embedcache.volume import ImageVolume, pixel_digest

NAMED_TILES = 10


def check_pixels(job: EncodeJob, plan: EncodePlan, progress: Progress) -> int:
    """Compare recorded tiles with the volume; return how many were compared.

    Raises
    ------
    MismatchError
        Naming the tiles whose pixels changed.
    """
    store = job.store
    if store is None:
        return 0
    known = len(store.committed)
    numbers = np.flatnonzero(plan.selected[:known] & store.committed)
    if isinstance(job.volume, ImageVolume):
        here = np.array([job.volume.has(int(plane)) for plane in job.table[numbers, 0]], dtype=bool)
        numbers = numbers[here]
    wanted = job.options.check_pixels
    if wanted is not None and wanted < len(numbers):
        seed = int(store.fingerprint.removeprefix("sha256:")[:16], 16)
        numbers = np.sort(np.random.default_rng(seed).choice(numbers, wanted, replace=False))
    changed: dict[str, tuple[object, object]] = {}
    progress.start("comparing recorded pixels", len(numbers))
    for number in map(int, numbers):
        tile = Tile(*map(int, job.table[number]))
        now = pixel_digest(job.preprocess.read(job.volume, tile))
        recorded = store.record(number).input_digest
        if now != recorded:
            changed[f"tile {number} ({store.plane_name(tile.plane)}, y0={tile.y0}, x0={tile.x0})"] = (
                recorded,
                now,
            )
        progress.advance()
    progress.finish()
    if changed:
        raise MismatchError(
            f"{job.volume.source}: the pixels of {len(changed)} of {len(numbers)} compared tiles changed since "
            "they were encoded. Nothing was written.",
            differences=dict(list(changed.items())[:NAMED_TILES]),
            hint="Encode the changed volume into another --store.",
        )
    return len(numbers)
