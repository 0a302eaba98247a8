"""Turns a folder of stores and a request into those that hold it, and those that held it before something changed.

A store is known by what it holds, not by its name: a volume that was moved or a store that was renamed is found.
A store of the same source and words whose identity is another one (changed pixels, other weights, another
precision of this machine) is never passed over: beginning a new one beside it in silence would hide the change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.encode.identity.words import Request, same_source
from embedcache.errors import EmbedcacheError
from embedcache.files import read_error
from embedcache.progress import Progress
from embedcache.store import EncodeSpec
from embedcache.store.creation import check_attributes
from embedcache.store.journal.lines import CREATED
from embedcache.store.layout import ATTRIBUTE, GROUP_FILE, JOURNAL, read_json
from embedcache.volume import ImageVolume


@dataclass(frozen=True)
class Listed:
    """What a store's metadata says, read without its journal.

    Parameters
    ----------
    path : Path
        The folder.
    spec : EncodeSpec
        What decides its embeddings.
    provenance : dict
        Where they come from.
    """

    path: Path
    spec: EncodeSpec
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a look-up found.

    Parameters
    ----------
    same : tuple of Listed
        Stores that hold what is asked for.
    alike : tuple of Listed
        Stores of the same source and words, of another identity.
    """

    same: tuple[Listed, ...]
    alike: tuple[Listed, ...]


def look_up(cache_dir: Path, request: Request, progress: Progress) -> Found:
    """Look through all stores of a folder; those that cannot be read are named and passed over."""
    same, alike = [], []
    for listed in list_stores(cache_dir, progress):
        expected = request.expected(listed.spec, listed.provenance)
        if expected.fingerprint == listed.spec.fingerprint and _is_same_collection(request, listed):
            same.append(listed)
        elif request.is_alike(listed.spec, listed.provenance):
            alike.append(listed)
    return Found(tuple(same), tuple(alike))


def _is_same_collection(request: Request, listed: Listed) -> bool:
    """A collection's identity is per image and outside the fingerprint: its folder tells it from others."""
    if not isinstance(request.volume, ImageVolume):
        return True
    return same_source(listed.provenance.get("source"), request.volume.source)


def list_stores(cache_dir: Path, progress: Progress) -> Iterator[Listed]:
    """The stores of a folder in order of name; what is no store is passed over in silence."""
    try:
        folders = sorted(path for path in cache_dir.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise read_error(error, cache_dir) from error
    for folder in folders:
        try:
            listed = _read(folder)
        except (EmbedcacheError, OSError) as error:
            reason = error.message if isinstance(error, EmbedcacheError) else f"{folder}: {error}"
            progress.say(f"Passed over in looking for the store: {reason.splitlines()[0]}")
            continue
        if listed is not None:
            yield listed


def _read(folder: Path) -> Listed | None:
    try:
        metadata = read_json(folder / GROUP_FILE)
    except (FileNotFoundError, NotADirectoryError):
        journal = {path.name for path in (folder / JOURNAL).glob("*.jsonl")}
        if CREATED in journal and len(journal) > 1:  # alone it is a store whose making was interrupted
            raise EmbedcacheError(f"{folder} has a journal, but no {GROUP_FILE}.") from None
        return None
    group = metadata.get("attributes")
    attributes = group.get(ATTRIBUTE) if isinstance(group, Mapping) else None
    if not isinstance(attributes, Mapping):
        return None  # some other Zarr group
    check_attributes(folder, attributes)
    return Listed(folder, EncodeSpec.from_dict(attributes["spec"]), attributes["provenance"])
