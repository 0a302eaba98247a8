"""Write what is generated: docs/cli.md from the commands' own --help, and the table of formats in docs/volumes.md.

Run ``make docs``; ``make lint`` runs it with ``--check``, which fails when a page is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from embedcache.cli.app import SECTIONS, app, register
from embedcache.volume.formats import formats_table

CLI = Path(__file__).parent / "cli.md"
VOLUMES = Path(__file__).parent / "volumes.md"
BEGIN, END = "<!-- formats -->\n", "<!-- /formats -->"
WIDTH = 100


def cli_page() -> str:
    """The page: every command's help, in the order of the sections."""
    register()
    parent = click.Context(app, info_name="embedcache", terminal_width=WIDTH)
    parts = [
        "# The commands\n",
        "Generated from `--help` by `make docs`. Option names take `-` and `_` alike; options may stand in "
        "`embedcache.toml`, one table per command. Exit codes: 0 done, 1 a bug of ours, 2 wrong usage or input, "
        "3 stale or mismatched, 4 corruption found, 5 locked by another writer, 6 storage failed (full, denied), "
        "7 finished with failed tiles or (a sweep) failed runs, 130/143 interrupted.\n",
        _block(app.get_help(parent)),
    ]
    for section, names in SECTIONS.items():
        parts.append(f"## {section}\n")
        for name in (name for name in names if name in app.commands):
            context = click.Context(app.commands[name], info_name=name, parent=parent, terminal_width=WIDTH)
            parts.append(f"### embedcache {name}\n")
            parts.append(_block(app.commands[name].get_help(context)))
            for inner, command in getattr(app.commands[name], "commands", {}).items():
                inside = click.Context(command, info_name=inner, parent=context, terminal_width=WIDTH)
                parts.append(f"### embedcache {name} {inner}\n")
                parts.append(_block(command.get_help(inside)))
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def volumes_page() -> str:
    """The page as it is, with the table of formats as it should be."""
    before, _, rest = VOLUMES.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{VOLUMES} has lost the comments around its table of formats.")
    return before + BEGIN + formats_table() + END + after


def main() -> None:
    """Write the pages, or check them."""
    for page, text in {CLI: cli_page(), VOLUMES: volumes_page()}.items():
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"{page} is not up to date; run `make docs`.")


if __name__ == "__main__":
    main()
