"""Turns results into what is printed: one JSON object, or a quiet two-column table on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """A console on stdout that never cuts a path when the output is not a terminal."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=160)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object and nothing else."""
    click.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def print_pairs(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print a two-column table of names and values."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(readable(value)))
    console().print(table)


def print_table(title: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table with a header row."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[Text(readable(value)) for value in row])
    console().print(table)


def readable(value: object) -> str:
    """A value as people read it: thousands separated, few digits, ``yes`` and ``no``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return "—" if value is None else str(value)


def numbers_in_words(numbers: Sequence[int], limit: int = 10) -> str:
    """The first few of many numbers, and how many more there are."""
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + more


def first_line(text: str) -> str:
    """The first line that says something; licences are long."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
