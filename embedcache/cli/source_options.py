"""Turns where a volume lies, how it is reached and where its data come from into options of commands."""

from __future__ import annotations

import click

from embedcache.cli.common import Decorated, apply


def source_options(function: Decorated) -> Decorated:
    """Add ``--image``, ``--anon`` and ``--chunk-cache``: how a volume is opened, no part of a recipe."""
    return apply(
        function,
        click.option(
            "--image",
            metavar="surface|ir|NAME",
            help="Of a fragment's folder: which image.  [default: its surface volume]",
        ),
        click.option(
            "--anon/--no-anon",
            default=None,
            help="Ask an address without credentials, or with.  [default: what suits the address]",
        ),
        click.option(
            "--chunk-cache",
            default="20GiB",
            show_default=True,
            metavar="BYTES",
            help="Of a volume at an address: chunks kept on this machine; 0: none.",
        ),
    )


def origin_options(function: Decorated) -> Decorated:
    """Add ``--licence``, ``--citation`` and ``--source-url``: where the data come from."""
    return apply(
        function,
        click.option("--licence", default="", metavar="TEXT", help="Licence of the data, kept in the store."),
        click.option(
            "--citation", default="", metavar="TEXT", help="How to cite the data, kept in the store."
        ),
        click.option(
            "--source-url", default="", metavar="URL", help="Where the data were fetched, kept in the store."
        ),
    )
