"""Turns a wish for views, or for more images, into rows of the tile table that the journal confirms.

The caller holds the mutex and has seen all that others journalled. Rows and lengths are written first: until the
journal speaks of them nobody looks at them, and the next writer takes back what the journal does not confirm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embedcache.errors import InputError, MismatchError
from embedcache.files import read_error, read_inside, require_no_links, write_file
from embedcache.geometry import VIEW_SETS
from embedcache.store import layout
from embedcache.store.journal.lines import CREATED, MAIN, decode_line, encode_line
from embedcache.store.journal.record import table_record
from embedcache.store.journal.replay import append
from embedcache.store.journal.state import TILES_LIMIT
from embedcache.store.views import base_rows, grown, planes_of, table_of, views_record
from embedcache.volume.volume import ImageRecord

if TYPE_CHECKING:
    from embedcache.store.store import EmbeddingStore

CREATED_LIMIT = 4 << 30
"""Bytes of the journal's first file above which it is not written anew."""


def add_images(store: EmbeddingStore, images: Sequence[ImageRecord], table: npt.NDArray[np.int64]) -> None:
    """Append images to a collection; see ``StoreWriter.add_images``."""
    known, views = store.images, bool(store.state.segments)
    _require_same_images(store, images)
    table = layout.with_views(table) if views else table[:, : len(layout.TILE_COLUMNS)]
    rows = min(len(table), len(store.table))
    if not np.array_equal(table[:rows], store.table[:rows]):
        raise MismatchError(
            f"{store.path}: the table of tiles does not begin with the {rows} rows that are there.",
            hint="Images may only be added, never taken out or reordered.",
        )
    if len(images) <= len(known):
        return
    layout.write_tiles(store.path, table, first=rows)
    layout.write_arrays(store.path, len(table), store.shard_tiles, store.spec.store_dtype, views=views)
    append(store.state, MAIN, table_record(len(table), images[len(known) :]))
    store.reload_table()
    store.write_group()


def add_views(store: EmbeddingStore, views: Collection[int]) -> None:
    """Give all places of a store tiles in further views; see ``StoreWriter.add_views``."""
    state, uniform = store.state, store.uniform
    unknown = set(views) - set(VIEW_SETS["d4"])
    if unknown:
        raise InputError(f"There is no view {min(unknown)}; a square has eight, 0 to 7.")
    base = base_rows(store.table, state.segments, uniform=uniform)
    planes = planes_of(base) if uniform else len(state.images)
    segments = grown(state.segments, planes, views)
    if segments == state.segments:
        return
    if len(base) * (len(set(views) | set(store.views) | {0})) >= TILES_LIMIT:
        raise InputError(f"{store.path}: with these views it would have more tiles than a store may have.")
    _announce(store)
    table = table_of(base, segments, uniform=uniform)
    there = len(store.table) if store.state.segments else 0  # the first views add a column to all rows
    layout.write_tiles(store.path, table, first=there)
    layout.write_arrays(store.path, len(table), store.shard_tiles, store.spec.store_dtype, views=True)
    append(store.state, MAIN, views_record(len(table), segments))
    store.reload_table()
    store.write_group()


def take_back_columns(store: EmbeddingStore) -> None:
    """Write the table as the journal has it, where a killed writer left the column of views unconfirmed."""
    state = store.state
    if state.segments or not state.announces_views:
        return
    widths = set(layout.tiles_widths(store.path, len(store)))
    if widths - {len(layout.TILE_COLUMNS)}:
        layout.write_tiles(store.path, store.table)


def _announce(store: EmbeddingStore) -> None:
    """Say in the journal's first lines that views may come, before the table's files have another size.

    Versions that know no views then refuse the store by that record's kind, and not as one that is damaged.
    """
    if store.state.announces_views:
        return
    path = store.path / layout.JOURNAL / CREATED
    require_no_links(store.path, path)
    try:
        lines = read_inside(store.path, path, CREATED_LIMIT).split(b"\n")
    except OSError as error:
        raise read_error(error, path) from error
    first = decode_line(lines[0])
    after = 1 if first is not None and first.get("kind") == "store" else 0
    lines.insert(after, encode_line({**views_record(0, ()), "seq": 0}).encode("ascii"))
    write_file(path, b"\n".join(lines))
    store.refresh()


def _require_same_images(store: EmbeddingStore, images: Sequence[ImageRecord]) -> None:
    """Refuse a list of images that is not the store's, as far as both go, or that names a new one twice."""
    known = store.images
    other = [mine.name for mine, there in zip(images, known, strict=False) if mine != there]
    if other:
        raise MismatchError(
            f"{store.path} was given other images meanwhile ({_some(other)} stand elsewhere or changed).",
            hint="Run the same command again.",
        )
    names = {image.name for image in known}
    for image in images[len(known) :]:
        if image.name in names:
            raise MismatchError(f"{store.path}: the image {image.name} would be there twice.")
        names.add(image.name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
