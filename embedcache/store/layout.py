"""Turns a store's numbers into names and small files: which file holds what, ``zarr.json``, the table of tiles.

Nothing here touches embeddings: the bytes of a shard are in ``shard.py``. What a ``zarr.json`` says is in
``metadata.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, InputError, command
from embedcache.files import crc32c, read_error, read_inside, require_no_links, write_file
from embedcache.store.metadata import (
    ATTRIBUTE,
    EMBEDDINGS,
    NO_TILE,
    SCALES,
    TILE_COLUMNS,
    TILE_ROWS,
    TILES,
    arrays_metadata,
    embeddings_metadata,
    group_metadata,
    json_bytes,
    root_metadata,
    scales_metadata,
    tile_columns,
    tiles_metadata,
)

__all__ = [
    "ATTRIBUTE",
    "DECODER",
    "DECODER_LIMIT",
    "EMBEDDINGS",
    "GROUP_FILE",
    "JOURNAL",
    "JSON_LIMIT",
    "NO_TILE",
    "SCALES",
    "TILES",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "arrays_metadata",
    "embeddings_metadata",
    "group_metadata",
    "has_rows",
    "json_bytes",
    "read_json",
    "read_tiles",
    "root_metadata",
    "scales_metadata",
    "scales_path",
    "shard_path",
    "tiles_bytes",
    "tiles_metadata",
    "tiles_path",
    "tiles_widths",
    "with_views",
    "write_arrays",
    "write_tiles",
]

GROUP_FILE = "zarr.json"
JOURNAL = "journal"
DECODER = "decoder.safetensors"

JSON_LIMIT = 16 << 20
"""Bytes above which a metadata file is refused instead of parsed."""

DECODER_LIMIT = 256 << 20
"""Bytes above which ``decoder.safetensors`` is refused."""

_CHUNK_BYTES = {
    TILE_ROWS * len(tile_columns(views)) * 8 + 4: len(tile_columns(views)) for views in (False, True)
}
"""Bytes that a chunk of the ``tiles`` array may have, with its checksum, and the columns it then has."""


def shard_path(root: Path, shard: int) -> Path:
    """File of one shard: Zarr's key ``c/SHARD/0/0/0`` of ``image_embeddings``."""
    return root / EMBEDDINGS / "c" / str(shard) / "0" / "0" / "0"


def tiles_path(root: Path, chunk: int) -> Path:
    """File of one chunk of the ``tiles`` array."""
    return root / TILES / "c" / str(chunk) / "0"


def scales_path(root: Path, shard: int) -> Path:
    """File of one shard's chunk of the ``scales`` array, which int8 stores have."""
    return root / SCALES / "c" / str(shard) / "0"


def read_json(path: Path) -> dict[str, Any]:
    """Read a metadata file.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        When there is none.
    StorageError
        When it is there but cannot be read.
    CorruptionError
        When it is larger than any of ours, a link, or no regular file.
    InputError
        When it is not JSON, or holds something other than an object.
    """
    try:
        data = read_inside(path.parent, path, JSON_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise read_error(error, path) from error
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({type(error).__name__}: {error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def write_arrays(
    root: Path, n_tiles: int, shard_tiles: int, store_dtype: str, *, views: bool = False
) -> None:
    """Make the arrays' metadata what it has to be for so many tile numbers; what is right is left alone."""
    for name, metadata in arrays_metadata(n_tiles, shard_tiles, store_dtype, views=views).items():
        path, data = root / name / GROUP_FILE, json_bytes(metadata)
        try:
            if read_inside(root, path, JSON_LIMIT) == data:
                continue
        except (FileNotFoundError, CorruptionError):
            pass
        except OSError as error:
            raise read_error(error, path) from error
        require_no_links(root, path.parent)
        write_file(path, data)


def has_rows(root: Path, n_tiles: int) -> bool:
    """Whether the files of ``tiles`` are long enough for so many tile numbers.

    Asked before a number that a journal claims decides how much memory is taken.

    Raises
    ------
    StorageError
        When the system refuses to look.
    """
    return all(width > 0 for width in tiles_widths(root, n_tiles))


def tiles_widths(root: Path, n_tiles: int) -> Iterator[int]:
    """Columns of each chunk of ``tiles``, as its size tells them; 0 where it is missing or of no size of ours."""
    for chunk in range(-(-n_tiles // TILE_ROWS)):
        path = tiles_path(root, chunk)
        try:
            yield _CHUNK_BYTES.get(path.lstat().st_size, 0)
        except (FileNotFoundError, NotADirectoryError):
            yield 0
        except OSError as error:
            raise read_error(error, path) from error


def write_tiles(root: Path, table: npt.NDArray[np.int64], *, first: int = 0) -> None:
    """Write the chunks of ``tiles`` that hold rows ``first`` and after; rows of the chunk before stay.

    Parameters
    ----------
    root : Path
        The store.
    table : ndarray of int64, shape (N, 5), or (N, 6) of a store that has views
        The whole table.
    first : int
        First row that is new; chunks that end before it are not touched.
    """
    for chunk in range(first // TILE_ROWS, -(-len(table) // TILE_ROWS)):
        require_no_links(root, tiles_path(root, chunk))
        write_file(tiles_path(root, chunk), tiles_bytes(table, chunk))


def tiles_bytes(table: npt.NDArray[np.int64], chunk: int) -> bytes:
    """One chunk of ``tiles`` as it stands on disk, with its checksum."""
    rows = np.full((TILE_ROWS, table.shape[1]), NO_TILE, dtype="<i8")
    part = table[chunk * TILE_ROWS : (chunk + 1) * TILE_ROWS]
    rows[: len(part)] = part
    data = rows.tobytes()
    return data + crc32c(data).to_bytes(4, "little")


def read_tiles(root: Path, n_tiles: int, *, views: bool = False) -> npt.NDArray[np.int64]:
    """Read the first ``n_tiles`` rows of ``tiles``, checked, as a read-only array (N, 5); (N, 6) with ``views``.

    Where the journal does not speak of views, a killed writer may have left chunks that have the column.

    Raises
    ------
    CorruptionError
        When a chunk is missing or differs from its checksum.
    StorageError
        When a chunk cannot be read.
    """
    columns, chunks = len(tile_columns(views)), -(-n_tiles // TILE_ROWS)
    table = np.empty((chunks * TILE_ROWS, columns), dtype=np.int64)
    for chunk in range(chunks):
        rows = _read_chunk(root, chunk)
        if rows.shape[1] < columns:
            raise CorruptionError(
                f"{tiles_path(root, chunk)}: the tile table lacks the views of its tiles.",
                hint=_rebuilds_table(root),
            )
        table[chunk * TILE_ROWS : (chunk + 1) * TILE_ROWS] = rows[:, :columns]
    table = table[:n_tiles]
    table.flags.writeable = False
    return table


def _read_chunk(root: Path, chunk: int) -> npt.NDArray[np.int64]:
    path = tiles_path(root, chunk)
    try:
        data = read_inside(root, path, max(_CHUNK_BYTES))
    except FileNotFoundError as error:
        raise CorruptionError(
            f"{path}: a part of the store's tile table is missing.", hint=_rebuilds_table(root)
        ) from error
    except OSError as error:
        raise read_error(error, path) from error
    rows, stored = data[:-4], data[-4:]
    if len(data) not in _CHUNK_BYTES or crc32c(rows).to_bytes(4, "little") != stored:
        raise CorruptionError(
            f"{path}: the store's tile table differs from its checksum.", hint=_rebuilds_table(root)
        )
    return np.frombuffer(rows, "<i8").reshape(TILE_ROWS, -1)


def with_views(table: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A table (N, 5) of base tiles with its sixth column; one that has it is given back."""
    if table.shape[1] > len(TILE_COLUMNS):
        return table
    return np.column_stack([table, np.where(table[:, 0] >= 0, 0, NO_TILE)])


def _rebuilds_table(root: Path) -> str:
    return f"`{command('repair', root)}` rebuilds it from the grid."
