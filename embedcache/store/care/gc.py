"""Turns store folders into a list of what nobody needs, and, when told to, removes exactly that.

Only what this package itself leaves behind is ever listed: files under temporary names, locks of dead writers,
older snapshots of the journal, stores whose making was interrupted, and, on request, stores that no run refers to.
No link is followed, and a file that is not ours is never touched. Removing holds the whole store's lock, and looks
once more at what is there after it was taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import InputError, StorageError, command
from embedcache.files import CLAIMS, LITTER_NAME, is_free, mutex, range_lock, remove_file, remove_tree
from embedcache.store import layout
from embedcache.store.journal.snapshot import is_snapshot
from embedcache.store.store import EmbeddingStore

OURS = {
    layout.GROUP_FILE,
    layout.JOURNAL,
    layout.EMBEDDINGS,
    layout.TILES,
    layout.SCALES,
    layout.DECODER,
}
"""What a store's folder holds; with other things in it, the whole folder is never removed."""


@dataclass(frozen=True)
class Garbage:
    """One thing that can be removed.

    Parameters
    ----------
    path : Path
        A file, or a whole store.
    bytes : int
        What it takes.
    what : str
        Its kind: "partial file", "dead lock", "older snapshot", "half-made store", "unused store".
    why : str
        Why nobody needs it.
    """

    path: Path
    bytes: int
    what: str
    why: str


@dataclass(frozen=True)
class References:
    """What a folder of runs refers to: paths, free of links, and fingerprints of stores."""

    runs: int
    paths: frozenset[str]
    fingerprints: frozenset[str]


def references(runs: Path) -> References:
    """Read which stores the runs below a folder were trained on.

    Raises
    ------
    InputError
        When there is no run at all (the folder may be the wrong one), or one that cannot be read.
    """
    configs = sorted(runs.glob("*/config.json"))
    if not configs:
        raise InputError(
            f"{runs.absolute()} holds no run, so every store would count as unused. Nothing was removed.",
            hint="Name the folder of the runs with --runs, or remove a store by hand.",
        )
    paths: set[str] = set()
    fingerprints: set[str] = set()
    for config in configs:
        values = layout.read_json(config)
        stores, prints = values.get("stores"), values.get("fingerprints", [])
        if not isinstance(stores, list) or not isinstance(prints, list):
            raise InputError(
                f"{config} does not say which stores its run was trained on. Nothing was removed."
            )
        paths |= {str(Path(str(store)).resolve()) for store in stores}
        fingerprints |= {str(text) for text in prints}
    return References(len(configs), frozenset(paths), frozenset(fingerprints))


def find_garbage(root: Path, used: References | None = None) -> list[Garbage]:
    """What could be removed of one store; nothing is changed.

    Parameters
    ----------
    root : Path
        A store, or a folder in which one was begun.
    used : References, optional
        With it, a store that no run refers to is garbage as a whole.

    Raises
    ------
    InputError
        When the folder is neither.
    CorruptionError
        When the store is damaged: then nobody can say what belongs to it.
    """
    root = root.absolute()
    if root.is_symlink():
        raise InputError(f"{root} is a link; gc follows none.", hint="Name the folder that it points to.")
    if not (root / layout.GROUP_FILE).exists():
        return [_half_made(root)]
    store = EmbeddingStore.open(root)
    if used is not None and not _is_used(store, used):
        _refuse_foreign(root)
        why = f"none of the {used.runs} runs was trained on it"
        return [Garbage(root, tree_bytes(root), "unused store", why)]
    # shard files without a record are left: where a journal lost lines they are all there is of acknowledged work
    return [*partial_files(root), *_dead_locks(root), *_older_snapshots(store)]


def _is_used(store: EmbeddingStore, used: References) -> bool:
    """Whether a run names the store, by whichever path, or one of the fingerprints that it has or had."""
    prints = {store.fingerprint, *store.state.former}
    return str(store.path.resolve()) in used.paths or not prints.isdisjoint(used.fingerprints)


def remove_garbage(root: Path, used: References | None = None) -> list[Garbage]:
    """Remove what :func:`find_garbage` lists, under the whole store's lock; returns what was removed.

    Raises
    ------
    LockedError
        When somebody is writing the store; nothing is removed.
    StorageError
        When the disk refuses; what was removed before stays removed.
    InputError, CorruptionError
        As of :func:`find_garbage`.
    """
    root = root.absolute()
    before = find_garbage(root, used)  # dead locks are removed by whoever takes the lock
    with range_lock(root / layout.JOURNAL, None, guarded=root):
        dead = [item for item in before if item.what == "dead lock" and not item.path.exists()]
        found = find_garbage(root, used)
        for item in found:
            if item.path == root:
                remove_tree(root)
            else:
                remove_file(item.path)
    return dead + found


def partial_files(root: Path) -> Iterator[Garbage]:
    """Files under temporary names, anywhere in the store: of a killed writer, or of one that is at work."""
    for path in _files(root):
        if LITTER_NAME.fullmatch(path.name):
            yield from _garbage(path, "partial file", "a killed writer left it, or one is writing it now")


def tree_bytes(root: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(path.lstat().st_size for path in _files(root))


def _half_made(root: Path) -> Garbage:
    if not (root / layout.JOURNAL).is_dir() or (root / layout.JOURNAL).is_symlink():
        raise InputError(f"{root} is no store of embeddings, and none was begun there.")
    if (root / layout.EMBEDDINGS / "c").exists():
        raise InputError(
            f"{root} holds embeddings, but its {layout.GROUP_FILE} is missing. Nothing was removed.",
            hint=f"`{command('repair', root)}` mends it.",
        )
    _refuse_foreign(root)
    return Garbage(
        root, tree_bytes(root), "half-made store", "its making was interrupted; it holds no embedding"
    )


def _refuse_foreign(root: Path) -> None:
    names = sorted(path.name for path in root.iterdir())
    foreign = [name for name in names if name not in OURS and not LITTER_NAME.fullmatch(name)]
    if foreign:
        raise InputError(
            f"{root} also holds {', '.join(foreign[:3])}, which is no part of a store. Nothing was removed.",
            hint="Move it elsewhere first, or remove the folder by hand.",
        )


def _dead_locks(root: Path) -> Iterator[Garbage]:
    """Lock files that no living process holds; looked at while nobody makes a new one."""
    folder = root / layout.JOURNAL
    try:
        with mutex(folder, guarded=root):
            dead = [path for path in sorted((folder / CLAIMS).glob("*.lock")) if is_free(path)]
    except StorageError:  # a read-only store: what can only be looked at by writing is left alone
        return
    for path in dead:
        yield from _garbage(path, "dead lock", "the process that held it is gone")


def _older_snapshots(store: EmbeddingStore) -> Iterator[Garbage]:
    snapshot = store.state.snapshot
    named = "" if snapshot is None else snapshot.path.name
    for path in sorted((store.path / layout.JOURNAL).iterdir()):
        if is_snapshot(path.name) and path.name != named and not path.is_symlink():
            yield from _garbage(path, "older snapshot", "the journal does not name it")


def _files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root, followlinks=False):
        names.sort()
        yield from (Path(folder) / name for name in sorted(files))


def _garbage(path: Path, what: str, why: str) -> Iterator[Garbage]:
    """The file as garbage; nothing where somebody has renamed or removed it since it was listed."""
    with suppress(FileNotFoundError):
        yield Garbage(path, path.lstat().st_size, what, why)
