"""Turns ``embedcache.toml`` of the current folder into defaults of the commands; and writes a first one.

The file has one table per command, with the command's own option names::

    [encode]
    volume = "scroll1.zarr"
    tile = 512
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError

CONFIG_NAME = "embedcache.toml"


def read_config(path: Path, command: str, options: Set[str], commands: tuple[str, ...]) -> Mapping[str, Any]:
    """The table of ``command``, keys with underscores; empty when there is no file or no such table.

    Raises
    ------
    ConfigError
        A file that is no TOML, a table that is no command, a key that is no option of the command.
    """
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: {error}.", hint="`embedcache init` writes a valid file to start from."
        ) from error
    strangers = sorted(
        name for name, table in tables.items() if name not in commands or not isinstance(table, dict)
    )
    if strangers:
        raise ConfigError(
            f"{path}: [{strangers[0]}] is no command.", hint=f"Tables may be: {', '.join(commands)}."
        )
    table = {key.replace("-", "_"): value for key, value in tables.get(command, {}).items()}
    unknown = sorted(set(table) - options)
    if unknown:
        raise ConfigError(
            f"{path}: [{command}] has no option {unknown[0]!r}.",
            hint=f"Options: {', '.join(sorted(options))}.",
        )
    return table


def _quoted(text: str) -> str:
    """As a basic string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def first_config(volume: str | None, labels: str | None, model: str) -> str:
    """The text of a first ``embedcache.toml``, with what is known filled in and the rest as comments."""
    volume_line = f"volume = {_quoted(volume)}" if volume else '# volume = "scroll1.zarr"'
    labels_line = f"labels = [{_quoted(labels)}]" if labels else '# labels = ["inklabels.zarr"]'
    weights = f"sam_{model}.pth" if model.startswith("vit_") and model != "vit_tiny" else "random:0"
    return f"""\
# Options of embedcache, one table per command, named as on the command line; the command line wins.
# With this file in place, `embedcache encode` and then `embedcache train` do the job.

[encode]
{volume_line}
model = {_quoted(model)}            # vit_b, vit_l, vit_h, or a name from `embedcache doctor`
# checkpoint = {_quoted(weights)}   # by default searched in the usual folders, then downloaded
# tile = 1024              # side of a tile in pixels of the level; a smaller tile shows SAM more detail
# overlap = 0
# level = 0
# z_range = "0:1000"
# bbox = "0:4096,0:4096"
# mask = "mask.png"        # encode only where the mask is positive
# read-memory = "2GiB"     # decoded pixels kept, so that each chunk of the source is decoded once
# workers = 1              # processes that encode together, one encoder (and GPU) each

[train]
{labels_line}
# supervision = "mask.png" # labels count only here
# steps = 2000
# out = "runs/first"

[predict]
# checkpoint = "runs/first"
# volume = "scroll2.zarr"
# output = "scroll2-ink.zarr"
"""
