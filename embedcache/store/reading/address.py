"""Turns what names a store into whether it is somewhere else."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from embedcache.errors import InputError

MIRROR_OF = "mirror-of.txt"
"""File of a mirror that holds the address of the store that it mirrors."""

_LIMIT = 4096


def is_remote(text: str) -> bool:
    """Whether this is an address rather than a path."""
    return "://" in text


def refuse_mirror(root: Path) -> None:
    """Refuse the folder that mirrors a store: InputError, which gives the store's address."""
    try:
        with (root / MIRROR_OF).open(encoding="utf-8", errors="replace") as file:
            url = file.read(_LIMIT).strip()
    except OSError:
        return
    raise InputError(
        f"{root} keeps what was read of a store that is somewhere else.", hint=f"Open {url} instead."
    )


def without_password(url: str) -> str:
    """An address as it may be shown and recorded: without a user's name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
