"""Turns a store into a list of the files in it that nobody claims and nothing removes: for people to judge.

A shard file without a record is what a killed writer published a moment too early, or, where the journal lost
lines, all there is of acknowledged work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.store import layout
from embedcache.store.store import EmbeddingStore

DAMAGED = ".damaged"
"""Ending under which ``repair`` keeps a journal file as it was found, before anything is written."""

_KEPT = re.compile(rf".+{re.escape(DAMAGED)}(\.[0-9]+)?")


@dataclass(frozen=True)
class Unclaimed:
    """A file of a store that no record speaks of.

    Parameters
    ----------
    path : Path
        The file.
    why : str
        What it may be.
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def kept_copies(root: Path) -> Iterator[Unclaimed]:
    """Files of the journal that ``repair`` kept as they were, before it wrote them anew."""
    folder = root / layout.JOURNAL
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _KEPT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield Unclaimed(
                folder / entry.name, "a damaged journal file as repair found it; yours to keep or remove"
            )


def unrecorded_shards(store: EmbeddingStore) -> Iterator[Unclaimed]:
    """Shard and scale files of which the journal, as it is now on disk, does not speak."""
    found = [
        *_numbered(store.path, layout.EMBEDDINGS, ("0", "0", "0")),
        *_numbered(store.path, layout.SCALES, ("0",)),
    ]
    if not found:
        return
    state = store.read_state()  # later than the list: a shard that was published meanwhile is recorded by now
    for shard, path in found:
        recorded = shard < len(state.shard_bytes) and state.shard_bytes[shard] > 0
        if not recorded and shard not in state.intents:
            yield Unclaimed(path, "no record speaks of it: never committed, or the journal lost lines")


def _numbered(root: Path, array: str, rest: Sequence[str]) -> Iterator[tuple[int, Path]]:
    """Files of an array's chunks, with the number of their shard; folders that are links are passed over."""
    top = root / array / "c"
    if top.is_symlink() or not top.is_dir():
        return
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        path = Path(entry.path).joinpath(*rest)
        inner = [Path(entry.path).joinpath(*rest[:depth]) for depth in range(len(rest) + 1)]
        if entry.name.isdecimal() and path.is_file() and not any(part.is_symlink() for part in inner):
            yield int(entry.name), path
