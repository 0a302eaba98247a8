"""Turns a store that is somewhere else into a folder with all of it but its embeddings."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain
from pathlib import Path

from embedcache.errors import CorruptionError, InputError, MismatchError, StorageError
from embedcache.files import make_folder, read_inside, remove_file, require_no_links, write_file
from embedcache.remote.sources import Source, again_and_again
from embedcache.store import layout
from embedcache.store.journal.lines import CREATED, MAIN, SUFFIX, decode_line
from embedcache.store.journal.snapshot import is_snapshot

TRIES = 3
"""How often a journal that changes while it is copied is copied again."""


def get(source: Source, url: str, name: str) -> bytes:
    """A whole file; FileNotFoundError when there is none, StorageError when it cannot be had."""
    return again_and_again(partial(source.read, name), f"{url}/{name}")


def copy_but_embeddings(source: Source, url: str, mirror: Path) -> bool:
    """Copy all of a store but its embeddings; whether its journal's folder could be listed.

    Parameters
    ----------
    source : Source
    url : str
        Its address, for messages.
    mirror : Path
        The folder to copy to.

    Raises
    ------
    InputError, MismatchError, CorruptionError, StorageError
        As of :func:`~embedcache.store.reading.remote.open_remote`.
    """
    try:
        group = get(source, url, layout.GROUP_FILE)
        attributes = json.loads(group)["attributes"][layout.ATTRIBUTE]
        arrays = json.loads(group)["consolidated_metadata"]["metadata"]
        rows = int(arrays[layout.TILES]["shape"][0])
    except FileNotFoundError as error:
        raise InputError(f"{url} is no store of embeddings: it has no {layout.GROUP_FILE}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url} is a Zarr group, but no store of embeddings.") from error
    _require_same(mirror, url, str(attributes.get("fingerprint")))
    names, journal, listed = _journal(source, url)
    known = [name for name in (layout.EMBEDDINGS, layout.TILES, layout.SCALES) if name in arrays]
    chunks = (layout.tiles_path(Path(), chunk).as_posix() for chunk in range(-(-rows // layout.TILE_ROWS)))
    for name in chain((layout.DECODER,), (f"{name}/{layout.GROUP_FILE}" for name in known), chunks):
        try:
            write_mirrored(mirror, name, get(source, url, name))
        except FileNotFoundError as error:
            raise CorruptionError(f"{url}/{name} is missing.") from error
    for name, data in journal.items():
        write_mirrored(mirror, name, data)
    folder = mirror / layout.JOURNAL
    for path in sorted(folder.iterdir()):
        if path.name not in names and (path.name.endswith(SUFFIX) or is_snapshot(path.name)):
            remove_file(path)
    write_mirrored(mirror, layout.GROUP_FILE, group)
    return listed


def _require_same(mirror: Path, url: str, fingerprint: str) -> None:
    """Refuse to turn the mirror of one store into that of another."""
    if not (mirror / layout.GROUP_FILE).exists():
        return
    before = layout.read_json(mirror / layout.GROUP_FILE)["attributes"][layout.ATTRIBUTE]
    if before["fingerprint"] != fingerprint:
        raise MismatchError(
            f"{url} is another store than the one that was there before.",
            differences={"fingerprint": (before["fingerprint"], fingerprint)},
            hint=f"Remove its mirror {mirror} if the other is no longer wanted.",
        )


def _journal(source: Source, url: str) -> tuple[set[str], dict[str, bytes], bool]:
    """Names and bytes of the journal's files as they were at one time, and whether they could be listed."""
    created = f"{layout.JOURNAL}/{CREATED}"
    for _ in range(TRIES):
        try:
            first = get(source, url, created)
        except FileNotFoundError as error:
            raise CorruptionError(f"{url}/{created} is missing: the journal's first file.") from error
        listing = again_and_again(partial(source.names, layout.JOURNAL), f"{url}/{layout.JOURNAL}")
        wanted = [MAIN, *_snapshots(first)] if listing is None else listing
        files = {}
        for name in wanted:
            if "/" not in name and name != CREATED and (name.endswith(SUFFIX) or is_snapshot(name)):
                try:
                    files[f"{layout.JOURNAL}/{name}"] = get(source, url, f"{layout.JOURNAL}/{name}")
                except FileNotFoundError:  # compacted since, or there was none
                    continue
        if get(source, url, created) == first:
            files[created] = first  # last: it names others
            return {Path(name).name for name in files}, files, listing is not None
    raise StorageError(f"{url}: its journal changed each of the {TRIES} times it was read.")


def _snapshots(created: bytes) -> list[str]:
    """Names of the snapshots that the journal's first file speaks of."""
    records = [decode_line(line) for line in created.splitlines()]
    names = [str(record.get("file")) for record in records if record and record.get("kind") == "snapshot"]
    return [name for name in names if is_snapshot(name)]  # nothing else: it becomes the name of a file here


def write_mirrored(mirror: Path, name: str, data: bytes) -> None:
    """Write a file of the mirror, unless it is there as it should be."""
    path = mirror / name
    try:
        if read_inside(mirror, path, len(data) + 1) == data:
            return
    except (OSError, CorruptionError):
        pass
    require_no_links(mirror, path.parent)
    make_folder(path.parent)
    write_file(path, data)
