"""Turns what a store is into Zarr metadata: what each ``zarr.json`` says, and its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedcache.geometry import EMBEDDING_SHAPE

EMBEDDINGS = "image_embeddings"
TILES = "tiles"
SCALES = "scales"

ATTRIBUTE = "embedcache"
"""The one key of the group's attributes under which everything of ours stands."""

TILE_COLUMNS = ("plane", "y0", "x0", "height", "width")
VIEW_COLUMN = "view"
"""The sixth column, of a store that has views."""

TILE_ROWS = 4096
"""Rows of one chunk of the ``tiles`` array."""

NO_TILE = -1
"""Value of a row of ``tiles`` whose number has no tile."""

_FILLS: dict[str, str | int] = {"float16": "NaN", "int8": -128}
"""Element types of the embeddings, and what stands for one that is not there."""

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def root_metadata(attributes: Mapping[str, Any], n_tiles: int, *, views: bool = False) -> dict[str, Any]:
    """``zarr.json`` of the store: the attributes, and the metadata of its arrays once more.

    With these a reader need not list the folder, which https cannot do; and it does not stumble over the
    files in it that are not Zarr's.
    """
    arrays = arrays_metadata(
        n_tiles, attributes["shard_tiles"], attributes["spec"]["store_dtype"], views=views
    )
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return {**group_metadata({ATTRIBUTE: dict(attributes)}), "consolidated_metadata": consolidated}


def arrays_metadata(
    n_tiles: int, shard_tiles: int, store_dtype: str, *, views: bool = False
) -> dict[str, dict[str, Any]]:
    """``zarr.json`` of each array of a store, by its name; ``views``: its table says the view of each tile."""
    arrays = {
        EMBEDDINGS: embeddings_metadata(n_tiles, shard_tiles, store_dtype),
        TILES: tiles_metadata(n_tiles, views=views),
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


def tiles_metadata(n_tiles: int, *, views: bool = False) -> dict[str, Any]:
    """``zarr.json`` of ``tiles``: one row a tile number, five int64 columns; six of a store that has views."""
    columns = tile_columns(views)
    return _array_metadata(
        shape=[n_tiles, len(columns)],
        chunk=[TILE_ROWS, len(columns)],
        data_type="int64",
        fill_value=NO_TILE,
        codecs=[_LITTLE, _CRC],
        dimension_names=["tile", "column"],
        attributes={"columns": list(columns)},
    )


def tile_columns(views: bool) -> tuple[str, ...]:
    """Names of the columns of ``tiles``."""
    return (*TILE_COLUMNS, VIEW_COLUMN) if views else TILE_COLUMNS


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
