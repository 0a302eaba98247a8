"""Turns a spec and a table into a new store folder, and says what a folder is that is no store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
from torch import Tensor

from embedcache.errors import CorruptionError, InputError, LockedError, MismatchError, command
from embedcache.files import (
    MUTEX,
    canonical_json,
    create_file,
    make_folder,
    read_error,
    sha256_hex,
    storage_error,
    write_file,
)
from embedcache.store import layout
from embedcache.store.journal.lines import CREATED, encode_line
from embedcache.store.journal.record import table_record
from embedcache.store.journal.state import StoreState
from embedcache.store.spec import FORMAT, EncodeSpec, leaf_differences
from embedcache.volume.volume import ImageRecord

SHARD_TILES = 64
"""Embeddings of one shard file, unless told otherwise."""

SHARD_TILES_LIMIT = 4096
"""Tiles of a shard above which a store is refused."""

NUMERICS = "numerics"
"""The one attribute that is only a copy of what the journal holds."""


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
    attributes = _new_attributes(spec, shard_tiles, provenance, sha256_hex(decoder))
    metadata = layout.json_bytes(layout.root_metadata({**attributes, "numerics": []}, len(table)))
    try:
        make_folder(root)
    except OSError as error:
        raise storage_error(error, root) from error
    write_file(root / layout.JOURNAL / layout.GROUP_FILE, layout.json_bytes(layout.group_metadata({})))
    write_file(root / layout.DECODER, decoder)
    layout.write_tiles(root, table)
    layout.write_arrays(root, len(table), shard_tiles, spec.store_dtype)
    write_file(root / layout.JOURNAL / CREATED, _created_journal(attributes, len(table), images))
    try:
        create_file(root / layout.GROUP_FILE, metadata)
    except FileExistsError as error:
        raise LockedError(
            f"{root} was made by another process at the same moment.",
            hint="Run the same command again; it opens what is there. This file system seems not to lock files.",
        ) from error


def _new_attributes(
    spec: EncodeSpec, shard_tiles: int, provenance: Mapping[str, Any], decoder_sha256: str
) -> dict[str, Any]:
    """The attributes of a new store, as they will be read back."""
    values = {
        "format": FORMAT,
        "fingerprint": spec.fingerprint,
        "embedding_space": spec.embedding_space,
        "spec": spec.to_dict(),
        "shard_tiles": shard_tiles,
        "decoder_sha256": decoder_sha256,
        "provenance": dict(provenance),
    }
    attributes: dict[str, Any] = json.loads(canonical_json(values))
    return attributes


def _created_journal(attributes: Mapping[str, Any], count: int, images: Sequence[ImageRecord]) -> bytes:
    """The journal's first file: what the store is, and which tiles there are."""
    lines = (
        encode_line({"kind": "store", "seq": 0, "attributes": attributes}),
        encode_line({**table_record(count, images), "seq": 1}),
    )
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def refuse_foreign(root: Path) -> None:
    """Refuse a folder that is neither missing, nor empty, nor a store whose making was interrupted."""
    if not root.exists():
        return
    if not root.is_dir():
        raise InputError(f"{root} is a file; a store is a folder.")
    ours = {layout.JOURNAL, layout.EMBEDDINGS, layout.TILES, layout.SCALES, layout.DECODER}
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
        raise CorruptionError(
            f"{root} holds embeddings, but its {layout.GROUP_FILE} is missing.", hint=_repair(root)
        )


def no_store(root: Path) -> InputError:
    """The error for a folder without a group: missing, interrupted in its making, or something else."""
    if not root.exists():
        return InputError(f"{root} does not exist.", hint="`embedcache status` lists the stores there are.")
    if root.is_dir() and (root / layout.JOURNAL / MUTEX).exists():
        return InputError(
            f"{root} is a store whose making was interrupted before the first embedding.",
            hint="Run the same encode command again; it completes it.",
        )
    return InputError(f"{root} is no store of embeddings: it has no {layout.GROUP_FILE}.")


def read_attributes(root: Path) -> dict[str, Any]:
    """The group's attributes as ``zarr.json`` has them, checked as far as they go.

    Raises
    ------
    InputError
        When the folder is no store, or its making was interrupted.
    MismatchError
        When a newer version wrote it.
    CorruptionError
        When it is a store whose ``zarr.json`` is broken.
    StorageError
        When it cannot be read.
    """
    try:
        metadata = layout.read_json(root / layout.GROUP_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_store(root) from error
    except InputError as error:
        if (root / layout.JOURNAL / MUTEX).exists():  # a store of ours, then
            raise CorruptionError(error.message, hint=_repair(root)) from error
        raise
    group = metadata.get("attributes")
    attributes = group.get(layout.ATTRIBUTE) if isinstance(group, dict) else None
    if not isinstance(attributes, dict):
        raise InputError(f"{root} is a Zarr group, but no store of embeddings.")
    check_attributes(root, attributes)
    return attributes


def agreed_attributes(root: Path, found: Mapping[str, Any], state: StoreState) -> dict[str, Any]:
    """The attributes that hold, once those of ``zarr.json`` and those of the journal are known to be the same.

    A writer that was killed while it changed the source leaves ``zarr.json`` as it was before; the journal holds.

    Raises
    ------
    CorruptionError
        When they differ, naming the fields.
    """
    attributes = {name: value for name, value in found.items() if name != NUMERICS}
    if state.attributes is None or attributes == state.attributes:
        return attributes
    if attributes != state.superseded:
        names = ", ".join(leaf_differences(attributes, state.attributes))
        raise CorruptionError(
            f"{root / layout.GROUP_FILE} and the journal differ in {names}.", hint=_repair(root)
        )
    check_attributes(root, state.attributes)
    return state.attributes


def _repair(root: Path) -> str:
    return f"`{command('repair', root)}` writes it anew from the journal."


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
        raise CorruptionError(
            f"{root}: its spec is not the one that its fingerprint was taken of.", hint=_repair(root)
        )
