"""Turns a volume into its figures, read once and kept: a repeated run finds them on this machine.

The figures of a volume of terabytes take hours. They are kept under what tells the volume and the mask from
others, never under a path; a file of them that is damaged is read as if it were not there. A small volume is read
anew each time, so that the figures cannot be of older pixels than the store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from embedcache.errors import StorageError
from embedcache.files import canonical_json, digest_json, sha256_file, write_file
from embedcache.progress import Progress
from embedcache.remote.address import is_remote
from embedcache.volume.identity import pixel_digest
from embedcache.volume.image_volume import ImageVolume
from embedcache.volume.normalisation import Statistics
from embedcache.volume.opening import open_volume
from embedcache.volume.statistics import gather_statistics
from embedcache.volume.volume import Volume
from embedcache.volume.window import sample_pixels

SMALL_BYTES = 128 << 20
"""Up to so many bytes of pixels nothing is remembered: reading them takes no longer than a look at an identity."""

REVISION = 1
"""Changes whenever the same pixels give other figures."""


def statistics_of(
    volume: Volume, *, mask: str | None, progress: Progress, between: Callable[[], None] = lambda: None
) -> Statistics:
    """The figures of a volume, from an earlier run if there was one.

    Parameters
    ----------
    volume : Volume
        What is read where nothing is remembered.
    mask : str or None
        Only pixels inside this mask.
    progress : Progress
        Told what is read, and where the figures could not be kept.
    between : callable
        Called now and then while the volume is read; what it raises ends that.

    Raises
    ------
    VolumeError
        As of :func:`gather_statistics`.
    """
    size = _pixel_bytes(volume)
    if size <= SMALL_BYTES:
        return gather_statistics(volume, mask=mask, progress=progress, between=between)
    key = _key(volume, mask)
    found = remembered(key)
    if found is not None:
        return found
    progress.say(f"Statistics: {size / (1 << 30):,.2f} GiB of pixels are read once; the figures are kept.")
    found = gather_statistics(volume, mask=mask, progress=progress, between=between)
    try:
        remember(key, found)
    except StorageError as error:
        progress.say(
            f"The statistics could not be kept; the next run reads the volume again. {error.message}"
        )
    return found


def remembered(key: str) -> Statistics | None:
    """The figures kept under a key; None where there are none that are whole."""
    try:
        values = json.loads((_folder() / f"{key}.json").read_text(encoding="utf-8"))
        figures = values["statistics"]
        return Statistics.from_dict(figures) if values["sha256"] == digest_json(figures) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(key: str, statistics: Statistics) -> None:
    """Keep figures under a key.

    Raises
    ------
    StorageError
        When the folder cannot be written.
    """
    figures = statistics.to_dict()
    values = {"statistics": figures, "sha256": digest_json(figures)}
    write_file(_folder() / f"{key}.json", canonical_json(values).encode("utf-8"))


def _folder() -> Path:
    named = os.environ.get("EMBEDCACHE_STATISTICS")
    return Path(named or "~/.cache/embedcache/statistics").expanduser()


def _pixel_bytes(volume: Volume) -> int:
    if volume.uniform:
        height, width = volume.plane_size(0)
        pixels = volume.n_planes * height * width
    else:
        pixels = sum(height * width for height, width in map(volume.plane_size, range(volume.n_planes)))
    return pixels * volume.channels * volume.dtype.itemsize


def _key(volume: Volume, mask: str | None) -> str:
    """Of an array by its header and a sample of its pixels; of a collection by the digests of its images."""
    if isinstance(volume, ImageVolume):
        pixels = digest_json([volume.image_record(plane).to_dict() for plane in range(volume.n_planes)])
    else:
        pixels = pixel_digest(sample_pixels(volume))
    return digest_json([REVISION, volume.header(), pixels, None if mask is None else _digest_of_mask(mask)])


def _digest_of_mask(mask: str) -> str:
    """Of the bytes of its files; of one at an address, of its metadata and a sample of its pixels."""
    path = Path(mask).expanduser()
    if not is_remote(mask) and path.is_file():
        return sha256_file(path)
    if not is_remote(mask) and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_json([[str(file.relative_to(path)), sha256_file(file)] for file in files])
    with open_volume(mask) as opened:
        return digest_json([opened.header(), pixel_digest(sample_pixels(opened))])
