"""Turns what lies in the current folder into defaults: the only store, and labels by their known names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from embedcache.cli.common import require_one_or_each
from embedcache.errors import ConfigError, EmbedcacheError, InputError, counted
from embedcache.remote import is_remote
from embedcache.store import EmbeddingStore
from embedcache.train.truth.data_file import NONE, Pair, read_data_file
from embedcache.train.truth.finding import FoundLabels, companions, find_labels
from embedcache.train.truth.whole_stores import STORE, store_indices

Paths = str | tuple[str | None, ...] | None
"""Nothing, one for all stores, or one for each, as ``train`` takes them."""


@dataclass(frozen=True)
class TrainingData:
    """What a training works on, as the command line, a data file or the names of files say it.

    Parameters
    ----------
    pairs : tuple of Pair
        Masks are paths or None.
    val : str
        ``--val`` with the names of a data file as numbers.
    """

    pairs: tuple[Pair, ...]
    val: str

    @property
    def chosen(self) -> tuple[list[str], list[str]]:
        """Stores and their labels."""
        return [pair.store for pair in self.pairs], [pair.labels for pair in self.pairs]

    @property
    def options(self) -> dict[str, Paths]:
        """The options of ``train`` that go with them."""
        return {
            "val": self.val,
            "supervision": _one_if_equal([pair.supervision for pair in self.pairs]),
            "validation": _one_if_equal([pair.validation for pair in self.pairs]),
            "boxes": _one_if_equal([pair.boxes for pair in self.pairs]),
        }


def training_data(
    stores: Sequence[str] | None,
    labels: Sequence[str] | None,
    cache_dir: Path,
    *,
    data: str | None = None,
    files: Mapping[str, Sequence[str] | None] | None = None,
    val: str = "auto",
    held_out: bool = True,
) -> TrainingData:
    """Stores, labels and masks, with what is not given found by the rules of the house and said.

    Parameters
    ----------
    stores, labels : sequence of str
        As given; none: the only store, labels by their known names beside its volume.
    cache_dir : Path
        Where the only store is looked for.
    data : str, optional
        A file of pairs, instead of the two.
    files : mapping, optional
        What was given for ``supervision``, ``validation`` and ``boxes``: one for all stores, or one for each.
    val : str
        As given.
    held_out : bool
        Whether a validation mask that is found may be used; not where something else says what is held out.

    Raises
    ------
    ConfigError
        When pairs do not match, or there is nothing or too much to choose from.
    """
    given = {name: tuple(value or ()) for name, value in (files or {}).items()}
    if data is not None:
        pairs = _from_file(Path(data), stores, labels, given)
        found: list[FoundLabels | None] = [None] * len(pairs)
    else:
        chosen = list(stores or ()) or [str(only_store(cache_dir))]
        found = [_found(store) for store in chosen] if not labels else [None] * len(chosen)
        named = [str(one.labels) for one in found if one] or list(labels or ())
        pairs = _paired(chosen, named, given)
    meant = _named(val, pairs)
    held_out = held_out and val == "auto"
    complete = [_with_masks(pair, one, held_out) for pair, one in zip(pairs, found, strict=True)]
    return TrainingData(tuple(complete), meant)


def labels_for(store: str) -> str:
    """Labels by their known names beside the volume a store was made from."""
    return str(_found(store).labels)


def supervision_for(labels: str, given: str | None = None) -> str | None:
    """The supervision mask of labels: the one that was given, unless it is ``none``, or the one beside them."""
    return _mask("supervision", given, _beside(labels)[0])


def only_store(cache_dir: Path) -> Path:
    """The only store of a cache folder; several are listed, and none is taken."""
    found = stores_in(cache_dir)
    if len(found) == 1:
        click.echo(f"store: {found[0]} (the only one)", err=True)
        return found[0]
    if not found:
        raise ConfigError(
            f"There is no store in {cache_dir.absolute()}.",
            hint="Make one with `embedcache encode --volume V`, or name one with --store.",
        )
    listing = "\n".join(f"  {number}. {path}" for number, path in enumerate(found, 1))
    raise ConfigError(
        f"{cache_dir.absolute()} holds {len(found)} stores:\n{listing}", hint="Name one with --store."
    )


def stores_in(cache_dir: Path) -> list[Path]:
    """The stores of a cache folder, by name."""
    if not cache_dir.is_dir():
        return []
    return sorted(path for path in cache_dir.iterdir() if path.is_dir() and _is_store(path))


def _is_store(path: Path) -> bool:
    try:
        EmbeddingStore.open(path)
    except InputError:
        return False
    except EmbedcacheError:
        return True  # a broken one is one as well; whoever opens it says what is wrong
    return True


def _from_file(
    path: Path,
    stores: Sequence[str] | None,
    labels: Sequence[str] | None,
    given: Mapping[str, tuple[str, ...]],
) -> list[Pair]:
    others = {"store": stores, "labels": labels, **given}
    twice = next((name for name, value in others.items() if value), None)
    if twice is not None:
        raise ConfigError(
            f"--data {path} says which stores and labels belong together; --{twice} was given as well.",
            hint=f"Write {twice} into the file, or leave --data out.",
        )
    pairs = list(read_data_file(path))
    click.echo(f"data: {path} ({counted(len(pairs), 'store')} with labels)", err=True)
    return pairs


def _paired(stores: list[str], labels: list[str], given: Mapping[str, tuple[str, ...]]) -> list[Pair]:
    if len(labels) != len(stores):
        raise ConfigError(
            f"{len(stores)} --store and {len(labels)} --labels: give them in pairs.",
            hint="The first --labels belongs to the first --store, and so on.",
        )
    for name, values in given.items():
        require_one_or_each(name, values, stores)
    return [
        Pair(store, label, **{name: values[index % len(values)] for name, values in given.items() if values})
        for index, (store, label) in enumerate(zip(stores, labels, strict=True))
    ]


def _found(store: str) -> FoundLabels:
    source = str(EmbeddingStore.open(store).provenance.get("source", ""))
    found = find_labels(source)
    click.echo(f"labels: {found.labels} ({found.how})", err=True)
    return found


def _with_masks(pair: Pair, found: FoundLabels | None, held_out: bool) -> Pair:
    """A pair with the masks that lie beside its labels, where none was given."""
    supervision, validation = _beside(pair.labels) if found is None else (found.supervision, found.validation)
    if validation is not None and not held_out and pair.validation is None:
        click.echo(f"validation: {validation} lies beside the labels; --val says what is held out.", err=True)
        validation = None
    return replace(
        pair,
        supervision=_mask("supervision", pair.supervision, supervision),
        validation=_mask("validation", pair.validation, validation),
    )


def _beside(labels: str) -> tuple[Path | None, Path | None]:
    return (None, None) if is_remote(labels) else companions(Path(labels))


def _mask(option: str, given: str | None, beside: Path | None) -> str | None:
    """The mask that was given, unless it is ``none``, or the one that lies beside the labels, and said."""
    if given is not None:
        return None if given == NONE else given
    if beside is None:
        return None
    click.echo(f"{option}: {beside} (found beside the labels; --{option} {NONE} leaves it out)", err=True)
    return str(beside)


def _named(val: str, pairs: Sequence[Pair]) -> str:
    """``--val store:NAME`` with the names of a data file as ``#2``: another fragment may be called 2."""
    names = [pair.name for pair in pairs]
    if not val.startswith(STORE) or not any(names):
        return val
    words = [word.strip() for word in val.removeprefix(STORE).split(",")]
    if not all(word in names or word.removeprefix("#").isdecimal() for word in words):
        store_indices(
            [EmbeddingStore.open(pair.store) for pair in pairs], val, names
        )  # refused before labels
    return STORE + ",".join(f"#{names.index(word) + 1}" if word in names else word for word in words)


def _one_if_equal(values: Sequence[str | None]) -> Paths:
    """What ``train`` takes: nothing, one path, or one for each store."""
    return values[0] if len(set(values)) == 1 else tuple(values)
