"""Turns ``EncodeOptions`` into a ``Survey``: the volume opened and cut into tiles, before any weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.encode.options import EncodeOptions
from embedcache.encode.overlapped import Stop
from embedcache.errors import Interrupted, VolumeError
from embedcache.progress import Progress
from embedcache.store import EmbeddingStore
from embedcache.store.views import Numbering
from embedcache.volume import (
    Preprocess,
    Selection,
    TileGrid,
    Volume,
    clipped_share,
    open_volume,
    resolve_preprocess,
    select,
)
from embedcache.volume.channels import resolve_channels
from embedcache.volume.normalisation import inside_mask, is_named, window_of
from embedcache.volume.remembered import statistics_of
from embedcache.volume.window import canonical_window, is_sampled, mask_missing

ALL_CLIPPED = 0.999
"""Share of sampled pixels outside the window above which encoding is refused."""

MUCH_CLIPPED = 0.5
"""Share above which it is said."""


@dataclass(frozen=True)
class Survey:
    """A volume opened and cut into tiles; needs no weights.

    Parameters
    ----------
    volume : Volume
        The opened source.
    preprocess : Preprocess
        With its window resolved.
    grid : TileGrid
        The rule of the grid.
    table : (N, 5) int64
        The tile table, for a folder in the order of its names.
    selection : Selection
        What is asked for.
    statistics : dict or None
        The figures that the window was found from, where it was asked for by name; for the spec.
    """

    volume: Volume
    preprocess: Preprocess
    grid: TileGrid
    table: npt.NDArray[np.int64]
    selection: Selection
    statistics: dict[str, Any] | None = None


def open_source_of(options: EncodeOptions) -> Volume:
    """The volume that the options name."""
    return open_volume(
        options.volume,
        level=options.level,
        read_memory=options.read_memory,
        image=options.image,
        anon=options.anon,
        chunk_cache=options.chunk_cache,
    )


def survey(options: EncodeOptions, progress: Progress, stop: Stop = lambda: None) -> Survey:
    """Open the volume and cut it up; refuse what no weights could make right.

    Parameters
    ----------
    options : EncodeOptions
        The wishes.
    progress : Progress
        Told what is read where the window wants all pixels.
    stop : callable
        Asked meanwhile for the number of the signal that wants the run to end.

    Raises
    ------
    VolumeError
        For a wrong volume, channel recipe, window or selection.
    Interrupted
        When a signal came while the pixels were read.
    """
    volume = open_source_of(options)
    preprocess, statistics = _resolve(volume, options, progress, stop)
    if options.window is not None and not is_sampled(canonical_window(options.window, volume)):
        _check_window(volume, preprocess.window, progress)
    grid = TileGrid(tile=options.tile, overlap=options.overlap)
    sizes = () if volume.uniform else tuple(map(volume.plane_size, range(volume.n_planes)))
    table = tile_table(volume, preprocess, grid, sizes)
    selection = Selection(z_range=options.z_range, bbox=options.bbox, mask=options.mask)
    if volume.uniform:  # a mask is read once, by the plan
        select(table, Selection(z_range=options.z_range, bbox=options.bbox), volume=volume)
    return Survey(volume, preprocess, grid, table, selection, statistics)


def _resolve(
    volume: Volume, options: EncodeOptions, progress: Progress, stop: Stop
) -> tuple[Preprocess, dict[str, Any] | None]:
    """The preprocessing, and the figures of the volume where its window was asked for by name."""
    name = canonical_window(options.window, volume)
    if not is_named(name):
        settled = resolve_preprocess(
            volume, channels=options.channels, window=options.window, recipe_from=options.recipe_from
        )
        return settled, None
    if inside_mask(name) and options.mask is None:
        raise mask_missing(name)
    # refused before anything is read
    recipe = resolve_channels(volume, options.channels, options.recipe_from)

    def look() -> None:
        number = stop()
        if number is not None:
            raise Interrupted(
                "Nothing was written yet; the statistics of the volume begin anew.", signal_number=number
            )

    mask = options.mask if inside_mask(name) else None
    figures = statistics_of(volume, mask=mask, progress=progress, between=look)
    return Preprocess(recipe, window_of(name, figures)), {"window": name, **figures.to_dict()}


def selected_tiles(
    table: npt.NDArray[np.int64], selection: Selection, volume: Volume
) -> npt.NDArray[np.bool_]:
    """Which tiles a selection asks for, (N,) bool; at least one.

    Raises
    ------
    VolumeError
        When the selection lies outside the volume or holds no tile.
    """
    selected = select(table, selection, volume=volume)
    if not selected.any():
        raise VolumeError(
            f"The selection holds no tile of {volume.source}.", hint="Widen --z-range, --bbox or --mask."
        )
    return selected


def selected_views(
    numbering: Numbering, selection: Selection, volume: Volume, views: Collection[int]
) -> npt.NDArray[np.bool_]:
    """Which tiles a selection asks for in these views, (N,) bool: :func:`selected_tiles`, and their views.

    Raises
    ------
    VolumeError
        As of :func:`selected_tiles`.
    """
    base = selected_tiles(numbering.table, selection, volume)
    if not numbering.segments:
        return base
    return base[numbering.base_of] & np.isin(numbering.view_of, list(views))


def say_what_window_stays(seen: Survey, store: EmbeddingStore, progress: Progress) -> None:
    """Figures of the volume are frozen when a store is made: that they would be others now is said."""
    if seen.statistics is None or store.spec.statistics == seen.statistics:
        return
    kept, now = (f"{low:g}:{high:g}" for low, high in (store.spec.preprocess.window, seen.preprocess.window))
    progress.say(
        f"{store.path} keeps the window {kept} of when it was made; --window {seen.statistics['window']} would "
        f"give {now} now (other pixels, or another mask)."
    )


def _check_window(volume: Volume, window: tuple[float, float], progress: Progress) -> None:
    """A window given by hand or by a recipe may be of another intensity scale, which would clip everything."""
    clipped = clipped_share(volume, window)
    edges = f"{window[0]:g}:{window[1]:g}"
    place = f"{volume.source}: {clipped:.0%} of a sample of its pixels lie outside the window {edges}"
    if clipped > ALL_CLIPPED:
        raise VolumeError(
            f"{place}; nothing would be left to see.",
            hint="The window is of another intensity scale: bring the volume to the scale of the one that the "
            "recipe comes from, or choose another --window (which makes another embedding space).",
        )
    if clipped > MUCH_CLIPPED:
        progress.say(f"{place}. Look whether that is meant.")


def tile_table(
    volume: Volume, preprocess: Preprocess, grid: TileGrid, sizes: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """The tile table of a volume; ``sizes`` are those of a folder's images, in the order of its image table."""
    if not volume.uniform:
        return grid.table_images(sizes)
    return grid.table_uniform(preprocess.n_planes(volume), *volume.plane_size(0))
