"""What several command modules share: ``--json``, ``--cache-dir``, and the note about untrained weights."""

from __future__ import annotations

from collections.abc import Sequence

import click

from embedcache.store import EmbeddingStore
from embedcache.store.certificate import Certificate

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
cache_dir_option = click.option(
    "--cache-dir", envvar="EMBEDCACHE_DIR", default="embeddings", show_default=True, help="Where stores live."
)


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
            words = f"none yet; `embedcache verify {path} --reencode 16` makes one"
        else:
            words = Certificate.from_dict(measured).sentence
        click.echo(f"fidelity of {store.path.name}: {words}.", err=True)
