"""Turns a checkpoint into the stores and labels that its run held out, where ``evaluate`` was given none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from embedcache.cli.defaults import labels_for, only_store, stores_in
from embedcache.errors import ConfigError, EmbedcacheError
from embedcache.remote import is_remote
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.truth.split import Split


@dataclass(frozen=True)
class Chosen:
    """Stores to evaluate on, and their labels."""

    stores: list[str]
    labels: list[str]


def chosen_stores(
    cache_dir: Path, checkpoint: str | None, part: str | None, labels: Sequence[str] = ()
) -> Chosen:
    """The only store of a folder; of several, those of a part of the checkpoint's run: what it held out.

    Parameters
    ----------
    cache_dir : Path
        Where stores live.
    checkpoint : str or None
        A run, or its checkpoint.
    part : "val", "train", "all" or None
        As ``--split``; None is ``val``.
    labels : sequence of str
        As given; with some, none are looked for.

    Raises
    ------
    ConfigError
        When there is no store, or several and nothing says which; the list says what the run used.
    """
    near = stores_in(cache_dir)
    if checkpoint is None or len(near) == 1:
        store = str(only_store(cache_dir))
        return Chosen([store], list(labels) or [labels_for(store)])
    trained = Checkpoint.load(checkpoint)
    split = Split.from_dict(trained.split)
    held = {index for index, _ in split.val}
    used = {index for index, _ in split.train} | held
    wanted = {"train": {index for index, _ in split.train}, "all": used}.get(part or "val", held)
    found = _found(split, [*trained.stores, *map(str, near)])
    if not wanted or not wanted <= set(found):
        raise _several(cache_dir, near, found, held)
    what = "held out" if part in (None, "val") else "used"
    for index in sorted(wanted):
        click.echo(f"store: {found[index]} ({what} by {checkpoint})", err=True)
    stores = [found[index] for index in sorted(wanted)]
    own = [_there(trained.labels, index) for index in sorted(wanted)]
    return Chosen(stores, list(labels) or _with_labels(stores, own))


def _found(split: Split, places: list[str]) -> dict[int, str]:
    """Where the stores of a split are, by their index; the first place that holds one counts."""
    found: dict[int, str] = {}
    for path in places:
        try:
            index = split.index_of(EmbeddingStore.open(path))
        except EmbedcacheError:
            continue  # moved, or broken: one that is asked for is missed below
        if index is not None:
            found.setdefault(index, path)
    return found


def _there(labels: tuple[str, ...], index: int) -> str | None:
    """The run's labels of a store, where they still are."""
    path = labels[index] if index < len(labels) else ""
    return path if path and (is_remote(path) or Path(path).exists()) else None


def _with_labels(stores: list[str], labels: list[str | None]) -> list[str]:
    for path in labels:
        if path is not None:
            click.echo(f"labels: {path} (of the run)", err=True)
    return [own or labels_for(store) for store, own in zip(stores, labels, strict=True)]


def _several(cache_dir: Path, near: list[Path], found: dict[int, str], held: set[int]) -> ConfigError:
    """The stores of a folder, with what the run made of them."""
    if not near:
        return ConfigError(
            f"There is no store in {cache_dir.absolute()}, and those of the run are not where they were.",
            hint="Name one with --store.",
        )
    of = {
        Path(path).resolve(): " (held out by the run)" if index in held else " (trained on)"
        for index, path in found.items()
    }
    listing = "\n".join(
        f"  {number}. {path}{of.get(path.resolve(), '')}" for number, path in enumerate(near, 1)
    )
    return ConfigError(
        f"{cache_dir.absolute()} holds {len(near)} stores, and the run used some that are not found:\n{listing}",
        hint="Name one with --store.",
    )
