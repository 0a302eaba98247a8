"""Turns a store's small files into problems: journal lines, Zarr metadata, the table of tiles, the decoder.

What an interrupted writer leaves in them (lengths and numerics that are copied a moment after the journal has
them) is told apart from damage: the next writer brings it up to date.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, EmbedcacheError, InputError
from embedcache.files import read_error, read_inside
from embedcache.geometry import PLANES_PER_BLOCK
from embedcache.store import layout
from embedcache.store.care.journal_damage import DamagedLine, damaged_lines
from embedcache.store.journal.file import journal_files
from embedcache.store.journal.lines import CREATED
from embedcache.store.journal.newest import NewestState
from embedcache.store.journal.state import StoreState
from embedcache.store.spec import EncodeSpec
from embedcache.store.store import EmbeddingStore
from embedcache.store.views import Segment, table_of
from embedcache.volume.volume import ImageRecord

JOURNAL_LIMIT = 4 << 30
"""Bytes above which a journal file is not looked at line by line."""

_LOOKS = 3
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Parameters
    ----------
    what : str
        "embedding", "scales", "missing file", "shard file", "journal", "metadata", "tile table", "decoder"
        or "store".
    where : str
        The file, and the line of a journal.
    tiles : tuple of int
        Numbers of the tiles that cannot be read because of it.
    reason : str
        What is wrong.
    """

    what: str
    where: str
    tiles: tuple[int, ...]
    reason: str

    def to_dict(self, limit: int) -> dict[str, Any]:
        """JSON values; at most ``limit`` tiles are named."""
        return {
            "what": self.what,
            "where": self.where,
            "tiles": list(self.tiles[:limit]),
            "reason": self.reason,
        }


def check_journal(root: Path) -> list[Problem]:
    """Every line of every journal file against its checksum; a torn last line is no problem."""
    folder = root / layout.JOURNAL
    return [
        problem for path in [folder / CREATED, *journal_files(folder)] for problem in _check_lines(root, path)
    ]


def _check_lines(root: Path, path: Path) -> Iterator[Problem]:
    try:
        damage = journal_damage(root, path)
    except (FileNotFoundError, NotADirectoryError):
        if path.name == CREATED and (root / layout.GROUP_FILE).exists():
            yield Problem("journal", str(path), (), f"{path} is missing: the journal's first file")
        return
    except CorruptionError as error:
        yield Problem("journal", str(path), (), error.message)
        return
    for line in damage:
        kind = "one flipped bit, which `repair` turns back" if line.mended else "more than one bit is wrong"
        where = f"{path}, line {line.number} (byte {line.offset})"
        yield Problem("journal", where, (), f"the line differs from its checksum: {kind}")


def journal_damage(root: Path, path: Path) -> list[DamagedLine]:
    """The damaged lines of a journal file; one that a writer is just changing is looked at again.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    CorruptionError
        When it is a link, no regular file, or too large to be one of ours.
    StorageError
        When it cannot be read.
    """
    damage = damaged_lines(read_journal(root, path))
    for _ in range(_LOOKS if damage else 0):
        # a writer that cuts off a torn line and appends its own shows, for a moment, one glued to the other
        time.sleep(_PAUSE_SECONDS)
        again = damaged_lines(read_journal(root, path))
        damage = [line for line in damage if line in again]
    return damage


def read_journal(root: Path, path: Path) -> bytes:
    """All bytes of a file of the journal; see :func:`journal_damage` for what is refused."""
    try:
        return read_inside(root, path, JOURNAL_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise read_error(error, path) from error


def check_files(store: EmbeddingStore, newest: NewestState) -> tuple[list[Problem], list[str]]:
    """The small files of a store that opens: what is damaged, and what is only behind the journal."""
    state = newest.state()
    problems: list[Problem] = []
    unfinished: list[str] = []
    for path, expected in metadata_files(store, state):
        found, note = _compare(store, state, path, expected)
        if found and newest.state() is not state:  # a writer has changed it meanwhile
            again = newest.state()
            found, note = _compare(store, again, path, dict(metadata_files(store, again))[path])
        problems += [Problem("metadata", str(path), (), found)] if found else []
        unfinished += [f"{path}: {note}"] if note else []
    problems += [*_check_table(store)]
    try:
        store.decoder_state()
    except CorruptionError as error:
        problems.append(Problem("decoder", str(store.path / layout.DECODER), (), error.message))
    return problems, unfinished


def metadata_files(store: EmbeddingStore, state: StoreState) -> list[tuple[Path, dict[str, Any]]]:
    """Each ``zarr.json`` of a store and what it has to hold."""
    count, dtype = state.n_tiles, store.spec.store_dtype
    views = bool(state.segments)
    arrays = layout.arrays_metadata(count, store.shard_tiles, dtype, views=views)
    return [
        (
            store.path / layout.GROUP_FILE,
            layout.root_metadata(group_attributes(state, store.attributes), count, views=views),
        ),
        (store.path / layout.JOURNAL / layout.GROUP_FILE, layout.group_metadata({})),
        *((store.path / name / layout.GROUP_FILE, metadata) for name, metadata in arrays.items()),
    ]


def _compare(
    store: EmbeddingStore, state: StoreState, path: Path, expected: dict[str, Any]
) -> tuple[str, str]:
    """What is wrong with a metadata file, and what is only behind the journal."""
    try:
        found = layout.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing", ""
    except (CorruptionError, InputError) as error:
        return error.message, ""
    if found == expected:
        return "", ""
    behind = [expected]
    if path == store.path / layout.GROUP_FILE and state.superseded is not None:
        behind.append(layout.root_metadata(state.superseded, state.n_tiles, views=bool(state.segments)))
    # an array's change only when it gets views, and so do the columns of its table
    lengths = not store.uniform or state.announces_views
    if path == store.path / layout.GROUP_FILE and _is_ahead(state, found):
        return f"{path} names numerics that the journal does not: lines of the journal are lost", ""
    if state.announces_views:
        found = _without_columns(found)
        behind = [_without_columns(metadata) for metadata in behind]
    if any(_timeless(found, lengths) == _timeless(metadata, lengths) for metadata in behind):
        return "", "it is behind the journal; the next writer brings it up to date"
    return f"{path} is not what it has to be", ""


def _is_ahead(state: StoreState, found: dict[str, Any]) -> bool:
    """Whether the group's metadata has numerics of which the journal does not speak."""
    attributes = found.get("attributes")
    ours = attributes.get(layout.ATTRIBUTE) if isinstance(attributes, dict) else None
    numerics = ours.get("numerics") if isinstance(ours, dict) else None
    return isinstance(numerics, list) and len(numerics) > len(state.numerics)


def _timeless(metadata: Any, lengths: bool) -> Any:
    """Metadata without what a writer copies into it a moment after the journal has it."""
    if not isinstance(metadata, dict):
        return metadata
    kept = {name: _timeless(value, lengths) for name, value in metadata.items() if name != "numerics"}
    shape = kept.get("shape")
    if lengths and metadata.get("node_type") == "array" and isinstance(shape, list) and _is_length(shape[:1]):
        kept["shape"] = shape[1:]
    return kept


def _is_length(first: list[Any]) -> bool:
    """Whether the first of an array's sizes can be one."""
    return len(first) == 1 and type(first[0]) is int and first[0] > 0


def _without_columns(metadata: Any) -> Any:
    """Metadata without the columns of the tile table, of which there may be five or six."""
    five, six = (layout.tiles_metadata(0, views=views) for views in (False, True))
    if not isinstance(metadata, dict):
        return metadata
    names = ("chunk_grid", "attributes", "data_type")
    if all(any(metadata.get(name) == one[name] for one in (five, six)) for name in names):
        shape = metadata.get("shape")
        if isinstance(shape, list) and shape[1:] in (five["shape"][1:], six["shape"][1:]):
            shape = [shape[0], None]
        return {**metadata, "shape": shape, **dict.fromkeys(names)}
    return {name: _without_columns(value) for name, value in metadata.items()}


def _check_table(store: EmbeddingStore) -> Iterator[Problem]:
    """The table of tiles, against the grid it follows from; a chunk in the wrong place has a right checksum."""
    try:
        found = layout.read_tiles(store.path, len(store), views=bool(store.numbering.segments))
    except CorruptionError as error:
        yield Problem("tile table", str(store.path / layout.TILES), (), error.message)
        return
    expected = expected_table(store.spec, store.images, len(store), store.numbering.segments)
    if expected is not None and not np.array_equal(found, expected):
        wrong = np.flatnonzero((found != expected).any(axis=1))
        chunks = np.unique(wrong // layout.TILE_ROWS).tolist()
        for chunk in chunks:
            where = str(layout.tiles_path(store.path, chunk))
            yield Problem("tile table", where, (), "rows are not the ones that the grid gives (swapped?)")


def expected_table(
    spec: EncodeSpec, images: Sequence[ImageRecord], count: int, segments: Sequence[Segment] = ()
) -> npt.NDArray[np.int64] | None:
    """The table that follows from the recipe; None where the recipe does not say it, or the table is another's.

    It is counted before it is made, so that a claim takes no memory.
    """
    grid = spec.grid
    try:
        if images:
            sizes = [(image.height, image.width) for image in images]
            counts = [grid.count(*size) for size in sizes]
            runs = segments or (Segment(0, 0, len(images)),)
            fits = sum(sum(counts[run.first_plane : run.end_plane]) for run in runs) == count
            return table_of(grid.table_images(sizes), segments, uniform=False) if fits else None
        planes, height, width = (int(size) for size in spec.volume["shape"])
        planes = spec.preprocess.tile_planes(planes)
        numbers = -(-planes // PLANES_PER_BLOCK) * PLANES_PER_BLOCK * grid.count(height, width)
        if planes <= 0 or numbers * max(1, len(segments)) != count:
            return None
        if any((run.first_plane, run.end_plane) != (0, planes) for run in segments):
            return None
        return table_of(grid.table_uniform(planes, height, width), segments, uniform=True)
    except (EmbedcacheError, KeyError, TypeError, ValueError, OverflowError):
        return None


def group_attributes(state: StoreState, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the group's attributes have to be: as the journal says; in older stores, as ``known``."""
    return {**(known if state.attributes is None else state.attributes), "numerics": state.numerics}
