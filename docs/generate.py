"""Write the generated pages: docs/cli.md from the commands' own --help.

Run ``make docs``; ``make lint`` runs it with ``--check``, which fails when a page is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from embedcache.cli.app import SECTIONS, app, register

PAGE = Path(__file__).parent / "cli.md"
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
        "7 finished with failed tiles, 130/143 interrupted.\n",
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


def main() -> None:
    """Write the page, or check it."""
    page = cli_page()
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit(f"{PAGE} is not up to date; run `make docs`.")


if __name__ == "__main__":
    main()
