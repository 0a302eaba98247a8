"""What several command modules share: ``--json``, ``--cache-dir``, and the note about untrained weights."""

from __future__ import annotations

import click

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
