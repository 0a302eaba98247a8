"""Turns what lies in the current folder into defaults: the only store, and labels by their known names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from embedcache.errors import ConfigError, EmbedcacheError, InputError
from embedcache.store import EmbeddingStore

LABEL_NAMES = ("inklabels", "labels", "label", "ink_masks", "masks", "mitochondria")
LABEL_ENDINGS = (".zarr", ".tif", ".tiff", ".png", "")


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


def store_and_labels(
    stores: Sequence[str], labels: Sequence[str], cache_dir: Path
) -> tuple[list[str], list[str]]:
    """Pairs of stores and labels, with what is not given found by the rules of the house.

    Raises
    ------
    ConfigError
        Several stores to choose from, none, or no labels found.
    """
    chosen = list(stores) or [str(only_store(cache_dir))]
    if not labels:
        return chosen, [labels_for(store) for store in chosen]
    if len(labels) != len(chosen):
        raise ConfigError(
            f"{len(chosen)} --store and {len(labels)} --labels: give them in pairs.",
            hint="The first --labels belongs to the first --store, and so on.",
        )
    return chosen, list(labels)


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


def labels_for(store: str) -> str:
    """Labels by their known names beside the volume a store was made from."""
    source = Path(str(EmbeddingStore.open(store).provenance.get("source", "")))
    folder = source.parent
    stem = source.name.split(".")[0]
    names = [f"{stem}_{name}" for name in LABEL_NAMES] + list(LABEL_NAMES)
    for name in names:
        for ending in LABEL_ENDINGS:
            path = folder / f"{name}{ending}"
            if path.exists() and path != source:
                click.echo(f"labels: {path} (found beside the volume)", err=True)
                return str(path)
    raise ConfigError(
        f"No labels were found beside {source}.",
        hint=f"Name them with --labels, or call them {stem}_inklabels.zarr, .tif or .png.",
    )
