"""What several command modules share: common options, options in groups or for each store, the note on weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from embedcache.errors import ConfigError, command, counted
from embedcache.progress import JsonLines, Progress, Terminal
from embedcache.store import EmbeddingStore
from embedcache.store.certificate import Certificate

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
cache_dir_option = click.option(
    "--cache-dir", envvar="EMBEDCACHE_DIR", default="embeddings", show_default=True, help="Where stores live."
)

log_json_option = click.option(
    "--log-json",
    is_flag=True,
    help="Progress as JSON, one object a line.  [default: with --json, where stderr is no terminal]",
)


def progress_for(as_json: bool, log_json: bool) -> Progress:
    """Where a command reports to: people, or machines that read its stderr."""
    return JsonLines() if log_json or (as_json and not sys.stderr.isatty()) else Terminal()


def warn_untrained() -> None:
    """Say that the encoder's weights are random."""
    click.echo(
        "Note: the encoder's weights are random (untrained). Good for trying out, not for results.", err=True
    )


def say_certificates(stores: Sequence[str]) -> None:
    """Say of each store, in one line, how faithful it was measured to be."""
    for path in stores:
        store = EmbeddingStore.open(path)
        measured = store.certificate
        if measured is None:
            words = f"none yet; `{command('verify', path, '--reencode', 16)}` makes one"
        else:
            words = Certificate.from_dict(measured).sentence
        click.echo(f"fidelity of {store.path.name}: {words}.", err=True)


def apply(function: Decorated, *options: Callable[[Decorated], Decorated]) -> Decorated:
    """A command with these options, in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def one_or_each(paths: Sequence[str]) -> str | tuple[str, ...] | None:
    """A path for all stores, or one for each in their order; None when none was given."""
    return tuple(paths) if len(paths) > 1 else next(iter(paths), None)


def require_one_or_each(option: str, paths: Sequence[str], stores: Sequence[str]) -> None:
    """Refuse (ConfigError) an option that was given neither once nor once for each store."""
    if len(paths) not in (0, 1, len(stores)):
        raise ConfigError(
            f"{counted(len(stores), 'store')}, but --{option} was given {len(paths)} times.",
            hint="Give one for all stores, or one for each in their order.",
        )
