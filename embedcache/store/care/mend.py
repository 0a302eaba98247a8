"""Turns a store's damaged small files, and damaged shard files, back into what they were, from what is left of it.

Everything here rebuilds bytes that follow from other, checked bytes: a journal line from its checksum, metadata
from the journal, the table of tiles from the grid, a shard file from its record and its chunks. What is right is
not written. The caller holds the whole store's lock; each file is replaced in one step, so it can be stopped
anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from embedcache.errors import CorruptionError, EmbedcacheError, InputError, StorageError
from embedcache.files import (
    Buffer,
    crc32c,
    create_file,
    partial_name,
    publish_file,
    read_error,
    read_inside,
    remove_file,
    require_no_links,
    sha256_file,
    sha256_hex,
    stage_file,
    write_file,
)
from embedcache.store import layout
from embedcache.store.care.journal_damage import flipped_bit, mend
from embedcache.store.care.unclaimed import DAMAGED
from embedcache.store.care.verify_files import (
    expected_table,
    group_attributes,
    journal_damage,
    read_journal,
)
from embedcache.store.creation import check_attributes
from embedcache.store.journal.lines import CREATED, JournalFile, decode_line, journal_files
from embedcache.store.journal.record import ShardRecord
from embedcache.store.journal.replay import catch_up
from embedcache.store.journal.snapshot import is_snapshot
from embedcache.store.journal.state import StoreState
from embedcache.store.shards.kept import KeptTiles
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.rows import rows_of
from embedcache.store.shards.scales import scales_bytes
from embedcache.store.shards.shard import CRC_BYTES, NOT_STORED, Stored, encode_index, payload
from embedcache.store.spec import EncodeSpec
from embedcache.store.store import EmbeddingStore

COPIES = 1000
"""Damaged copies of one file that are kept at most."""


@dataclass
class Mended:
    """What was mended, and what could not be, in words."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


REBUILT_TILES = 1 << 24
"""Tile numbers for which a missing table is rebuilt at most; more only a table that is there makes believable."""


class _WithoutTable(StoreState):
    """A journal replayed although the table of tiles, which follows from it, may be missing."""

    def _require_rows(self, n_tiles: int) -> None:
        """Only that memory is not taken by a mere claim: the table is about to be rebuilt."""
        if n_tiles > REBUILT_TILES:
            super()._require_rows(n_tiles)


def mend_files(root: Path) -> Mended:
    """Mend the journal, the Zarr metadata and the table of tiles of a store; the decoder needs the weights.

    Parameters
    ----------
    root : Path
        The store, which need not open.
    """
    mended = Mended()
    for path in [root / layout.JOURNAL / CREATED, *journal_files(root / layout.JOURNAL)]:
        _mend_journal(root, path, mended)
    _mend_snapshot(root, mended)
    try:
        found = _recorded_attributes(root)
        state = _replay(root, int(found["shard_tiles"]))
        attributes = group_attributes(state, found)
    except EmbedcacheError as error:
        mended.left.append(error.message)
        return mended
    spec = EncodeSpec.from_dict(attributes["spec"])
    _mend_table(root, spec, state, mended)
    count = state.n_tiles
    arrays = layout.arrays_metadata(count, attributes["shard_tiles"], spec.store_dtype)
    _mend_json(root, root / layout.JOURNAL / layout.GROUP_FILE, layout.group_metadata({}), mended)
    for name, metadata in arrays.items():
        _mend_json(root, root / name / layout.GROUP_FILE, metadata, mended)
    _mend_json(root, root / layout.GROUP_FILE, layout.root_metadata(attributes, count), mended)
    return mended


def _mend_journal(root: Path, path: Path, mended: Mended) -> None:
    try:
        damage = journal_damage(root, path)
    except FileNotFoundError:
        return  # a missing first file is told by whoever replays the journal
    except CorruptionError as error:
        mended.left.append(error.message)
        return
    if not damage:
        return
    data = read_journal(root, path)
    kept = _keep(path, data)
    right = mend(data, damage)
    if right != data:
        write_file(path, right)
    for line in damage:
        if line.mended is not None:
            mended.done.append(f"{path}, line {line.number}: one flipped bit (the file as it was: {kept})")
        else:
            mended.left.append(
                f"{path}, line {line.number}: more than one bit is wrong, which its checksum cannot undo. "
                f"Restore the file from a copy of the store (it is kept as {kept}), or encode into another --store"
            )


def _mend_snapshot(root: Path, mended: Mended) -> None:
    """Turn one flipped bit of the snapshot back; what else is wrong with it, replaying the journal says."""
    with suppress(FileNotFoundError, NotADirectoryError, CorruptionError, LookupError, TypeError, ValueError):
        for line in read_journal(root, root / layout.JOURNAL / CREATED).split(b"\n"):
            record = decode_line(line)
            if record is None or record.get("kind") != "snapshot" or not is_snapshot(str(record["file"])):
                continue
            path = root / layout.JOURNAL / str(record["file"])
            data = bytearray(read_journal(root, path))
            found = flipped_bit(len(data), crc32c(data) ^ int(record["file_crc32c"], 16))
            if found is not None and len(data) == record["bytes"]:
                kept = _keep(path, bytes(data))
                data[found[0]] ^= found[1]
                write_file(path, data)
                mended.done.append(f"{path}: one flipped bit (the file as it was: {kept})")


def _keep(path: Path, data: bytes) -> Path:
    """Keep a damaged file beside itself; once for each content."""
    for number in range(1, COPIES + 1):
        kept = path.with_name(path.name + DAMAGED + ("" if number == 1 else f".{number}"))
        try:
            create_file(kept, data)
            return kept
        except FileExistsError:
            with suppress(OSError):
                if sha256_file(kept) == sha256_hex(data):
                    return kept
    raise StorageError(f"{path}: there are too many damaged copies beside it.", hint="Move them elsewhere.")


def _recorded_attributes(root: Path) -> dict[str, Any]:
    """The attributes that the journal says, or those of the group where it says none (older stores)."""
    folder = root / layout.JOURNAL
    for path in [folder / CREATED, *journal_files(folder)]:
        with suppress(FileNotFoundError, NotADirectoryError):
            for line in read_journal(root, path).split(b"\n"):
                record = decode_line(line) if b'"kind":"store"' in line else None
                if record is not None:
                    check_attributes(root, record["attributes"])
                    return dict(record["attributes"])
    try:
        attributes = layout.read_json(root / layout.GROUP_FILE)["attributes"][layout.ATTRIBUTE]
        check_attributes(root, attributes)
    except (OSError, KeyError, TypeError, InputError) as error:
        raise CorruptionError(
            f"{root / layout.GROUP_FILE} is damaged, and the journal does not say what stood in it.",
            hint="Restore it from a copy.",
        ) from error
    return dict(attributes)


def _replay(root: Path, shard_tiles: int) -> StoreState:
    state = _WithoutTable(root, shard_tiles)
    path = root / layout.JOURNAL / CREATED
    try:
        created = state.files[CREATED] = JournalFile(root, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptionError(f"{path} is missing: nothing says what the store holds.") from error
    for place, record in created.records():
        state.apply(place, record)
    catch_up(state)
    return state


def _mend_table(root: Path, spec: EncodeSpec, state: StoreState, mended: Mended) -> None:
    table = expected_table(spec, state.images, state.n_tiles)
    try:
        there = layout.read_tiles(root, state.n_tiles)
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


def rebuild_shard(store: EmbeddingStore, record: ShardRecord, new: Mapping[int, Stored]) -> bool:
    """Write a shard's files as the record says, from the chunks that are right and the embeddings given.

    Parameters
    ----------
    store : EmbeddingStore
        Held for writing as a whole.
    record : ShardRecord
        What the files have to be.
    new : dict of int to embedding
        By slot: what is not right in the files there.

    Returns
    -------
    bool
        Whether every byte is the one recorded; if not, nothing was changed.
    """
    held = record.stored
    final, scales = layout.shard_path(store.path, record.shard), layout.scales_path(store.path, record.shard)
    for path in (final, scales):
        require_no_links(store.path, path.parent)  # a link at the very end is replaced, not followed
        if path.is_dir() and not path.is_symlink():
            raise CorruptionError(f"{path} is a folder; move it elsewhere, then run repair again.")
    source = KeptTiles(store.path, store.form, store.shard_tiles, [record])
    partial = partial_name(store.path / layout.EMBEDDINGS / str(record.shard))
    rows = rows_of(held)
    try:
        table = None
        if held.scale_crcs is not None:
            table = scales_bytes(
                {slot: _scales(source, rows, slot, new) for slot in held.slots.tolist()}, store.shard_tiles
            )
        stage_file(partial, _pieces(store, held, source, new))
        if f"sha256:{sha256_file(partial)}" != record.digest:
            remove_file(partial)
            return False
    except CorruptionError:
        return False
    if table is not None:
        write_file(scales, table)
    publish_file(partial, final)
    return True


def _scales(source: KeptTiles, rows: Mapping[int, Any], slot: int, new: Mapping[int, Stored]) -> Any:
    given = new.get(slot)
    return given.scales if isinstance(given, Quantised) else source.scales(slot, rows[slot])


def _pieces(
    store: EmbeddingStore, held: ShardRecord, source: KeptTiles, new: Mapping[int, Stored]
) -> Iterator[Buffer]:
    """The file's bytes in order, each chunk checked against the record."""
    index, rows = held.index(store.shard_tiles, store.form), rows_of(held)
    slots = np.flatnonzero(index[:, 0] != NOT_STORED)
    _, first = np.unique(index[slots, 0], return_index=True)
    for slot in slots[first].tolist():  # np.unique gives the offsets in order
        data = payload(new[slot]) if slot in new else source.payload(slot, rows[slot])
        if crc32c(data) != rows[slot].crc:
            raise CorruptionError(f"slot {slot} was encoded again to other bits")
        yield data
        yield rows[slot].crc.to_bytes(CRC_BYTES, "little")
    yield encode_index(index)
