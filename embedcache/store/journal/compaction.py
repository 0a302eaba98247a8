"""Turns a journal that has grown long into a snapshot, so that opening a large store stays quick.

The order is: the snapshot under its own name; ``created.jsonl`` replaced in one step by two lines, the second of
which names the snapshot (and between them one that says which views there are, where there are any); then the
files and snapshots that it stands for are removed. Killed anywhere in between, the journal says the same: lines
that the snapshot stands for are passed over by their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from embedcache.files import canonical_json, crc32c, remove_file, require_no_links, write_file
from embedcache.store import layout
from embedcache.store.journal.file import journal_files
from embedcache.store.journal.lines import CREATED, encode_line
from embedcache.store.journal.record import DIGEST_BYTES
from embedcache.store.journal.snapshot import (
    DTYPES,
    HEADER_LIMIT,
    SHARD_COLUMNS,
    STALE,
    TILE_COLUMNS,
    Column,
    expected,
    is_snapshot,
    snapshot_name,
)
from embedcache.store.journal.state import StoreState
from embedcache.store.views import views_record

COMPACT_BYTES = 4 << 20
"""Bytes of journal lines up to which nothing is compacted."""

SNAPSHOT_SHARE = 0.5
"""Share of the snapshot's bytes that the lines after it may have: so that writing it costs little per line."""


def is_due(state: StoreState) -> bool:
    """Whether the journal has grown so long that a snapshot makes it shorter.

    Never while a replacement is undecided: a snapshot says what is, not what may be.
    """
    lines = sum(file.size for name, file in state.files.items() if name != CREATED or state.snapshot is None)
    kept = 0 if state.snapshot is None else state.snapshot.size
    return lines > max(COMPACT_BYTES, SNAPSHOT_SHARE * kept) and not state.intents


def compact(state: StoreState, attributes: Mapping[str, Any]) -> bool:
    """Replace the journal by a snapshot of ``state``, which must be all that it says; returns whether it was done.

    The mutex must be held, and nobody else may hold shards of the store.

    Parameters
    ----------
    state : StoreState
        The journal, replayed.
    attributes : dict
        The group's attributes, for a store that has no record of them yet.

    Raises
    ------
    StorageError
        When the disk refuses; the journal then says what it said before.
    """
    folder, sequence = state.root / layout.JOURNAL, state.sequence
    name = snapshot_name(sequence)
    if state.snapshot is None or state.snapshot.sequence < sequence:
        pieces = _pieces(state)
        if pieces is None:
            return False
        checksum = 0

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal checksum
            for piece in pieces:
                checksum = crc32c(piece, checksum)
                yield piece

        require_no_links(state.root, folder / name)
        size = write_file(folder / name, counted())
        about = {"kind": "store", "seq": 0, "attributes": _without_numerics(state.attributes or attributes)}
        made = {"file": name, "bytes": size, "file_crc32c": f"{checksum:08x}"}
        lines = [encode_line(about), encode_line({"kind": "snapshot", "seq": sequence, **made})]
        if state.announces_views:  # a line of its own, which readers that know no views refuse by its kind
            count = state.n_tiles if state.segments else 0
            lines.insert(1, encode_line({**views_record(count, state.segments), "seq": 0}))
        write_file(folder / CREATED, "".join(f"{line}\n" for line in lines).encode("ascii"))
    for path in journal_files(folder):
        remove_file(path)
    for path in sorted(folder.iterdir()):
        if is_snapshot(path.name) and path.name != name:
            remove_file(path)
    return True


def _without_numerics(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name != "numerics"}


def _pieces(state: StoreState) -> Iterator[bytes | memoryview] | None:
    """The bytes of a snapshot of a state, in order; ``None`` when its header would be too long."""
    columns = _gather(state)
    about = {
        "tiles": state.n_tiles,
        "shard_tiles": state.shard_tiles,
        "numerics": state.numerics,
        "selections": state.selections,
        "certificates": state.certificates,
        "former": state.former,
        "images": [image.to_dict() for image in state.images],
        "reasons": state.reasons,
    }
    header: dict[str, Any] = {"__metadata__": {"journal": canonical_json(about)}}
    offset = 0
    for name, column in columns.items():
        dtype, shape = expected(name, state.n_tiles, state.shard_tiles)
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + column.nbytes],
        }
        offset += column.nbytes
    text = canonical_json(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        return None
    return _stream(text, columns)


def _stream(header: bytes, columns: Mapping[str, Column]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for column in columns.values():
        yield column.reshape(-1).view(np.uint8).data


def _gather(state: StoreState) -> dict[str, Column]:
    """All columns, the ones of the older snapshot overwritten by the records that came after it."""
    columns: dict[str, Column] = {}
    for name in (*SHARD_COLUMNS, *TILE_COLUMNS):  # the widest elements first, so that all stand aligned
        dtype, shape = expected(name, state.n_tiles, state.shard_tiles)
        columns[name] = np.zeros(shape, DTYPES[dtype])
        kept = name in ("minimum", "maximum", "inputs", "shard_digest", "shard_numerics")
        if kept and state.snapshot is not None:
            old = state.snapshot.column(name)
            columns[name][: len(old)] = old
    for name in ("crc", "reason", "wanted", "shard_sequence", "shard_bytes"):
        columns[name][:] = getattr(state, name)
    columns["flags"][:] = state.flags | np.where(state.stale, np.uint8(STALE), np.uint8(0))
    if state.scale_crc is None:
        del columns["scale_crc"]
    else:
        columns["scale_crc"][:] = state.scale_crc
    for shard in state.places:
        _overwrite(columns, state, shard)
    return dict(sorted(columns.items(), key=lambda entry: -entry[1].itemsize))


def _overwrite(columns: dict[str, Column], state: StoreState, shard: int) -> None:
    record = state.shard_record(shard)
    assert record is not None
    held = record.stored
    every = slice(shard * state.shard_tiles, (shard + 1) * state.shard_tiles)
    for name in ("minimum", "maximum", "inputs"):
        columns[name][every] = 0
    numbers = shard * state.shard_tiles + held.slots
    columns["crc"][numbers] = held.crc
    columns["minimum"][numbers], columns["maximum"][numbers] = held.minimum, held.maximum
    columns["inputs"][numbers] = np.frombuffer(held.input_bytes, np.uint8).reshape(-1, DIGEST_BYTES)
    if held.scale_crcs is not None:
        columns["scale_crc"][numbers] = held.scale_crcs
    columns["shard_numerics"][shard] = -1 if record.numerics is None else record.numerics
    digest = bytes.fromhex(record.digest.removeprefix("sha256:")) if record.digest else bytes(DIGEST_BYTES)
    columns["shard_digest"][shard] = np.frombuffer(digest, np.uint8)
