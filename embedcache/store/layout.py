"""Turns a store's numbers into names and Zarr metadata: which file holds what, and what ``zarr.json`` says.

Nothing here touches embeddings; the bytes of a shard are in ``shard.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError, InputError, command
from embedcache.files import crc32c, read_error, read_inside, require_no_links, write_file
from embedcache.geometry import EMBEDDING_SHAPE

GROUP_FILE = "zarr.json"
EMBEDDINGS = "image_embeddings"
TILES = "tiles"
SCALES = "scales"
JOURNAL = "journal"
DECODER = "decoder.safetensors"

ATTRIBUTE = "embedcache"
"""The one key of the group's attributes under which everything of ours stands."""

TILE_COLUMNS = ("plane", "y0", "x0", "height", "width")
TILE_ROWS = 4096
"""Rows of one chunk of the ``tiles`` array."""

NO_TILE = -1
"""Value of a row of ``tiles`` whose number has no tile."""

JSON_LIMIT = 16 << 20
"""Bytes above which a metadata file is refused instead of parsed."""

DECODER_LIMIT = 256 << 20
"""Bytes above which ``decoder.safetensors`` is refused."""

_CHUNK_BYTES = TILE_ROWS * len(TILE_COLUMNS) * 8 + 4
"""Bytes of one chunk of the ``tiles`` array, with its checksum."""

_FILLS: dict[str, str | int] = {"float16": "NaN", "int8": -128}
"""Element types of the embeddings, and what stands for one that is not there."""

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


def shard_path(root: Path, shard: int) -> Path:
    """File of one shard: Zarr's key ``c/SHARD/0/0/0`` of ``image_embeddings``."""
    return root / EMBEDDINGS / "c" / str(shard) / "0" / "0" / "0"


def tiles_path(root: Path, chunk: int) -> Path:
    """File of one chunk of the ``tiles`` array."""
    return root / TILES / "c" / str(chunk) / "0"


def scales_path(root: Path, shard: int) -> Path:
    """File of one shard's chunk of the ``scales`` array, which int8 stores have."""
    return root / SCALES / "c" / str(shard) / "0"


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def root_metadata(attributes: Mapping[str, Any], n_tiles: int) -> dict[str, Any]:
    """``zarr.json`` of the store: the attributes, and the metadata of its arrays once more.

    With these a reader need not list the folder, which https cannot do; and it does not stumble over the
    files in it that are not Zarr's.
    """
    arrays = arrays_metadata(n_tiles, attributes["shard_tiles"], attributes["spec"]["store_dtype"])
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return {**group_metadata({ATTRIBUTE: dict(attributes)}), "consolidated_metadata": consolidated}


def arrays_metadata(n_tiles: int, shard_tiles: int, store_dtype: str) -> dict[str, dict[str, Any]]:
    """``zarr.json`` of each array of a store, by its name."""
    arrays = {
        EMBEDDINGS: embeddings_metadata(n_tiles, shard_tiles, store_dtype),
        TILES: tiles_metadata(n_tiles),
    }
    if store_dtype == "int8":
        arrays[SCALES] = scales_metadata(n_tiles, shard_tiles)
    return arrays


def embeddings_metadata(n_tiles: int, shard_tiles: int, store_dtype: str) -> dict[str, Any]:
    """``zarr.json`` of ``image_embeddings``: one chunk an embedding, ``shard_tiles`` of them a file."""
    inner = {
        "chunk_shape": [1, *EMBEDDING_SHAPE],
        "codecs": [_LITTLE if store_dtype == "float16" else {"name": "bytes"}, _CRC],
        "index_codecs": [_LITTLE, _CRC],
        "index_location": "end",
    }
    return _array_metadata(
        shape=[n_tiles, *EMBEDDING_SHAPE],
        chunk=[shard_tiles, *EMBEDDING_SHAPE],
        data_type=store_dtype,
        fill_value=_FILLS[store_dtype],
        codecs=[{"name": "sharding_indexed", "configuration": inner}],
        dimension_names=["tile", "channel", "row", "column"],
    )


def scales_metadata(n_tiles: int, shard_tiles: int) -> dict[str, Any]:
    """``zarr.json`` of ``scales``: one row a tile, one value a channel; a file for each shard."""
    channels = EMBEDDING_SHAPE[0]
    return _array_metadata(
        shape=[n_tiles, channels],
        chunk=[shard_tiles, channels],
        data_type="float32",
        fill_value="NaN",
        codecs=[_LITTLE, _CRC],
        dimension_names=["tile", "channel"],
    )


def tiles_metadata(n_tiles: int) -> dict[str, Any]:
    """``zarr.json`` of ``tiles``: one row a tile number, five int64 columns."""
    return _array_metadata(
        shape=[n_tiles, len(TILE_COLUMNS)],
        chunk=[TILE_ROWS, len(TILE_COLUMNS)],
        data_type="int64",
        fill_value=NO_TILE,
        codecs=[_LITTLE, _CRC],
        dimension_names=["tile", "column"],
        attributes={"columns": list(TILE_COLUMNS)},
    )


def _array_metadata(
    *,
    shape: list[int],
    chunk: list[int],
    data_type: str,
    fill_value: str | int,
    codecs: list[dict[str, Any]],
    dimension_names: list[str],
    attributes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": attributes or {},
        "dimension_names": dimension_names,
    }


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """The bytes of a metadata file: sorted, indented, ending in a line break; no NaN."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")


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


def write_arrays(root: Path, n_tiles: int, shard_tiles: int, store_dtype: str) -> None:
    """Make the arrays' metadata what it has to be for so many tile numbers; what is right is left alone."""
    for name, metadata in arrays_metadata(n_tiles, shard_tiles, store_dtype).items():
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
    chunks = -(-n_tiles // TILE_ROWS)
    return all(_has_chunk(tiles_path(root, chunk)) for chunk in range(chunks))


def _has_chunk(path: Path) -> bool:
    try:
        return path.lstat().st_size == _CHUNK_BYTES
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise read_error(error, path) from error


def write_tiles(root: Path, table: npt.NDArray[np.int64], *, first: int = 0) -> None:
    """Write the chunks of ``tiles`` that hold rows ``first`` and after; rows of the chunk before stay.

    Parameters
    ----------
    root : Path
        The store.
    table : ndarray of int64, shape (N, 5)
        The whole table.
    first : int
        First row that is new; chunks that end before it are not touched.
    """
    for chunk in range(first // TILE_ROWS, -(-len(table) // TILE_ROWS)):
        require_no_links(root, tiles_path(root, chunk))
        write_file(tiles_path(root, chunk), tiles_bytes(table, chunk))


def tiles_bytes(table: npt.NDArray[np.int64], chunk: int) -> bytes:
    """One chunk of ``tiles`` as it stands on disk, with its checksum."""
    rows = np.full((TILE_ROWS, len(TILE_COLUMNS)), NO_TILE, dtype="<i8")
    part = table[chunk * TILE_ROWS : (chunk + 1) * TILE_ROWS]
    rows[: len(part)] = part
    data = rows.tobytes()
    return data + crc32c(data).to_bytes(4, "little")


def read_tiles(root: Path, n_tiles: int) -> npt.NDArray[np.int64]:
    """Read the first ``n_tiles`` rows of ``tiles``, checked, as a read-only array (N, 5).

    Raises
    ------
    CorruptionError
        When a chunk is missing or differs from its checksum.
    StorageError
        When a chunk cannot be read.
    """
    chunks = -(-n_tiles // TILE_ROWS)
    table = np.empty((chunks * TILE_ROWS, len(TILE_COLUMNS)), dtype=np.int64)
    for chunk in range(chunks):
        path = tiles_path(root, chunk)
        try:
            data = read_inside(root, path, _CHUNK_BYTES)
        except FileNotFoundError as error:
            raise CorruptionError(
                f"{path}: a part of the store's tile table is missing.", hint=_rebuilds_table(root)
            ) from error
        except OSError as error:
            raise read_error(error, path) from error
        rows, stored = data[:-4], data[-4:]
        if len(data) != _CHUNK_BYTES or crc32c(rows).to_bytes(4, "little") != stored:
            raise CorruptionError(
                f"{path}: the store's tile table differs from its checksum.", hint=_rebuilds_table(root)
            )
        table[chunk * TILE_ROWS : (chunk + 1) * TILE_ROWS] = np.frombuffer(rows, "<i8").reshape(TILE_ROWS, -1)
    table = table[:n_tiles]
    table.flags.writeable = False
    return table


def _rebuilds_table(root: Path) -> str:
    return f"`{command('repair', root)}` rebuilds it from the grid."
