"""Turns a spec and a table into a new store folder, and says what a folder is that is no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
from torch import Tensor

from embedcache.errors import CorruptionError, InputError, LockedError, MismatchError
from embedcache.files import (
    canonical_json,
    create_file,
    make_folder,
    read_error,
    sha256_hex,
    storage_error,
    write_file,
)
from embedcache.store import layout
from embedcache.store.journal import CREATED, encode_line
from embedcache.store.record import table_record
from embedcache.store.spec import FORMAT, EncodeSpec
from embedcache.volume.volume import ImageRecord

SHARD_TILES = 64
"""Embeddings of one shard file, unless told otherwise."""

SHARD_TILES_LIMIT = 4096


def write_new(
    root: Path,
    spec: EncodeSpec,
    table: npt.NDArray[np.int64],
    decoder_state: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    images: Sequence[ImageRecord],
    shard_tiles: int,
) -> None:
    """Write everything of a new store; the group's metadata comes last and makes it one."""
    decoder = safetensors.torch.save({name: value.contiguous() for name, value in decoder_state.items()})
    attributes = {
        "format": FORMAT,
        "fingerprint": spec.fingerprint,
        "embedding_space": spec.embedding_space,
        "spec": spec.to_dict(),
        "shard_tiles": shard_tiles,
        "decoder_sha256": sha256_hex(decoder),
        "numerics": [],
        "provenance": dict(provenance),
    }
    metadata = layout.json_bytes(layout.root_metadata(attributes, len(table), shard_tiles))
    try:
        make_folder(root)
    except OSError as error:
        raise storage_error(error, root) from error
    write_file(root / layout.JOURNAL / layout.GROUP_FILE, layout.json_bytes(layout.group_metadata({})))
    write_file(root / layout.DECODER, decoder)
    layout.write_tiles(root, table)
    layout.write_arrays(root, len(table), shard_tiles)
    line = encode_line({**table_record(len(table), images), "seq": 0})
    write_file(root / layout.JOURNAL / CREATED, line.encode("ascii") + b"\n")
    try:
        create_file(root / layout.GROUP_FILE, metadata)
    except FileExistsError as error:
        raise LockedError(
            f"{root} was made by another process at the same moment.",
            hint="Run the same command again; it opens what is there. This file system seems not to lock files.",
        ) from error


def refuse_foreign(root: Path) -> None:
    """Refuse a folder that is neither missing, nor empty, nor a store whose making was interrupted."""
    if not root.exists():
        return
    if not root.is_dir():
        raise InputError(f"{root} is a file; a store is a folder.")
    ours = {layout.JOURNAL, layout.EMBEDDINGS, layout.TILES, layout.DECODER}
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError as error:
        raise read_error(error, root) from error
    if layout.GROUP_FILE in names:
        return  # another process has just made it
    foreign = [name for name in names if name not in ours and not name.endswith(".partial")]
    if foreign:
        raise InputError(
            f"{root} is not empty and no store: it holds {', '.join(foreign[:3])}.",
            hint="Choose a --store that does not exist yet.",
        )
    if (root / layout.EMBEDDINGS / "c").exists():
        raise CorruptionError(f"{root} holds embeddings, but its {layout.GROUP_FILE} is missing.")


def no_store(root: Path) -> InputError:
    """The error for a folder without a group: missing, interrupted in its making, or something else."""
    if not root.exists():
        return InputError(f"{root} does not exist.", hint="`embedcache status` lists the stores there are.")
    if root.is_dir() and (root / layout.JOURNAL / layout.LOCK).exists():
        return InputError(
            f"{root} is a store whose making was interrupted before the first embedding.",
            hint="Run the same encode command again; it completes it.",
        )
    return InputError(f"{root} is no store of embeddings: it has no {layout.GROUP_FILE}.")


def check_attributes(root: Path, attributes: Mapping[str, Any]) -> None:
    """Refuse attributes of a newer version, malformed ones, and a spec that is not the fingerprint's.

    Raises
    ------
    MismatchError, InputError, CorruptionError
        In this order.
    """
    found = attributes.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise MismatchError(
            f"{root} has store format {found}; this version of embedcache reads formats up to {FORMAT}.",
            hint="Install a newer embedcache: pip install --upgrade embedcache",
        )
    if found != FORMAT:
        raise InputError(f"{root} says that its store format is {canonical_json(found)}; expected {FORMAT}.")
    for name in ("spec", "provenance"):
        if not isinstance(attributes.get(name), dict):
            raise InputError(f"{root}: its attributes lack {name!r}.")
    tiles = attributes.get("shard_tiles")
    if not (isinstance(tiles, int) and 1 <= tiles <= SHARD_TILES_LIMIT):
        raise InputError(f"{root} says {tiles!r} tiles a shard; expected 1 to {SHARD_TILES_LIMIT}.")
    if not isinstance(attributes.get("decoder_sha256"), str):
        raise InputError(f"{root}: its attributes lack 'decoder_sha256'.")
    spec = EncodeSpec.from_dict(attributes["spec"])
    if attributes.get("fingerprint") != spec.fingerprint:
        raise CorruptionError(f"{root}: its spec is not the one that its fingerprint was taken of.")
