"""Turns a store's damaged small files back into what they were, from what is left of it.

Everything here rebuilds bytes that follow from other, checked bytes: a journal line from its checksum, metadata
from the journal, the table of tiles from the grid. What is right is not written. The caller holds the lock of the
whole store; each file is replaced in one step, so it can be stopped anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from embedcache.errors import CorruptionError, EmbedcacheError, StorageError
from embedcache.files import read_error, read_inside, require_no_links, sha256_hex, write_file
from embedcache.store import layout
from embedcache.store.care.mend_journal import Mended, mend_journal
from embedcache.store.care.replaying import recorded_attributes, replay
from embedcache.store.care.verify_files import expected_table, group_attributes
from embedcache.store.journal.state import StoreState
from embedcache.store.spec import EncodeSpec
from embedcache.store.store import EmbeddingStore


def mend_files(root: Path, *, drop: bool = False) -> Mended:
    """Mend the journal, the Zarr metadata and the table of tiles of a store; the decoder needs the weights.

    Parameters
    ----------
    root : Path
        The store, which need not open.
    drop : bool
        Leave out lines of the journal that cannot be mended, where no more is lost than they said.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    mended = Mended()
    mend_journal(root, mended, drop=drop)
    try:
        found = recorded_attributes(root)
        state = replay(root, int(found["shard_tiles"]))
        attributes = group_attributes(state, found)
    except StorageError:
        raise
    except EmbedcacheError as error:
        mended.left.append(error.message)
        return mended
    spec = EncodeSpec.from_dict(attributes["spec"])
    _mend_table(root, spec, state, mended)
    count, views = state.n_tiles, bool(state.segments)
    arrays = layout.arrays_metadata(count, attributes["shard_tiles"], spec.store_dtype, views=views)
    _mend_json(root, root / layout.JOURNAL / layout.GROUP_FILE, layout.group_metadata({}), mended)
    for name, metadata in arrays.items():
        _mend_json(root, root / name / layout.GROUP_FILE, metadata, mended)
    _mend_json(root, root / layout.GROUP_FILE, layout.root_metadata(attributes, count, views=views), mended)
    return mended


def _mend_table(root: Path, spec: EncodeSpec, state: StoreState, mended: Mended) -> None:
    table = expected_table(spec, state.images, state.n_tiles, state.segments)
    try:
        there = layout.read_tiles(root, state.n_tiles, views=bool(state.segments))
        if table is None or np.array_equal(there, table):
            return
    except CorruptionError as error:
        if table is None:
            mended.left.append(f"{error.message} The recipe does not say what stood in it")
            return
    for chunk in range(-(-len(table) // layout.TILE_ROWS)):
        path, data = layout.tiles_path(root, chunk), layout.tiles_bytes(table, chunk)
        if _bytes_there(root, path) != data:
            require_no_links(root, path)
            write_file(path, data)
            mended.done.append(f"{path}: rebuilt from the grid")


def _mend_json(root: Path, path: Path, metadata: Mapping[str, Any], mended: Mended) -> None:
    data = layout.json_bytes(metadata)
    if _bytes_there(root, path) != data:
        require_no_links(root, path)
        write_file(path, data)
        mended.done.append(f"{path}: rebuilt from the journal")


def _bytes_there(root: Path, path: Path) -> bytes | None:
    try:
        return read_inside(root, path, layout.JSON_LIMIT)
    except (CorruptionError, FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise read_error(error, path) from error


def mend_decoder(store: EmbeddingStore, decoder_state: Mapping[str, Tensor]) -> bool:
    """Write the decoder's file anew from the checkpoint; False where that does not give the recorded bytes."""
    data = safetensors.torch.save({name: value.contiguous() for name, value in decoder_state.items()})
    if sha256_hex(data) != store.attributes["decoder_sha256"]:
        return False
    require_no_links(store.path, store.path / layout.DECODER)
    write_file(store.path / layout.DECODER, data)
    return True
