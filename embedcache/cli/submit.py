"""The command that makes a contest's table of run lengths out of masks, and masks out of such a table: submit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from embedcache.cli.app import app
from embedcache.cli.common import json_option
from embedcache.cli.output import print_json
from embedcache.cli.signals import stop_at_once
from embedcache.errors import ConfigError


@app.command(
    short_help="A table of run lengths from masks, and back.",
    epilog="Example: embedcache submit a.png b.png --output submission.csv",
)
@click.argument("masks", nargs=-1, metavar="[MASK…]")
@click.option(
    "--id",
    "named",
    multiple=True,
    metavar="NAME=MASK",
    help="A mask and its Id; may be repeated.  [default: the file's name]",
)
@click.option("--output", required=True, metavar="O", help="The .csv; with --back the folder of pictures.")
@click.option(
    "--threshold", type=float, help="Of probabilities: above it is foreground.  [default: they are masks]"
)
@click.option("--back", metavar="CSV", help="Paint the masks of this table again, one PNG each.")
@click.option(
    "--size", "sizes", multiple=True, metavar="[NAME=]HxW", help="With --back: height and width of the plane."
)
@click.option(
    "--like", multiple=True, metavar="[NAME=]FILE", help="With --back: a picture or volume of that size."
)
@json_option
def submit(
    masks: tuple[str, ...],
    named: tuple[str, ...],
    output: str,
    threshold: float | None,
    back: str | None,
    sizes: tuple[str, ...],
    like: tuple[str, ...],
    as_json: bool,
) -> None:
    """Submit masks of several fragments as one csv, Id,Predicted, of run lengths; or paint such a csv again.

    A MASK is a PNG, TIFF or Zarr of one plane, a folder of pictures that predict wrote, or a csv of predict.
    """
    with stop_at_once():
        if back is not None:
            if masks or named or threshold is not None:
                raise ConfigError(
                    "--back paints what is in a table; masks and --threshold are for making one."
                )
            _paint(back, output, sizes, like, as_json)
            return
        if sizes or like:
            raise ConfigError("--size and --like are for --back; a mask has its own size.")
        _join(masks, named, output, threshold, as_json)


def _join(
    masks: Sequence[str], named: Sequence[str], output: str, threshold: float | None, as_json: bool
) -> None:
    from embedcache.results.submission import joined, write_submission

    pairs = [_named(text, "--id", "MASK") for text in named]
    found = joined([*((None, mask) for mask in masks), *pairs])
    path = write_submission(output, found, threshold=threshold)
    if as_json:
        print_json({"output": str(path), "ids": list(found), "bytes": path.stat().st_size})
    else:
        click.echo(str(path))


def _paint(back: str, output: str, sizes: Sequence[str], like: Sequence[str], as_json: bool) -> None:
    from embedcache.results.painting import Size, paint_submission, read_size, size_like

    known: dict[str | None, Size] = {}
    for text in sizes:
        name, size = _named(text, "--size", "HxW") if "=" in text else (None, text)
        known[name] = read_size(size)
    for text in like:
        name, file = (
            (None, text) if Path(text).exists() or "=" not in text else _named(text, "--like", "FILE")
        )
        known[name] = size_like(file)
    painted = paint_submission(back, output, known)
    if as_json:
        print_json({"output": str(Path(output).absolute()), "masks": [str(path) for path in painted]})
    else:
        for path in painted:
            click.echo(str(path))


def _named(text: str, option: str, what: str) -> tuple[str | None, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value:
        raise ConfigError(f"{option} {text!r}: expected is NAME={what}.")
    return name.strip(), value
