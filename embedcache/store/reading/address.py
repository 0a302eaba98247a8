"""Turns the folder that mirrors a store into the address of that store; re-exports what addresses are."""

from __future__ import annotations

from pathlib import Path

from embedcache.errors import InputError
from embedcache.remote.address import is_remote, without_password

__all__ = ["MIRROR_OF", "is_remote", "refuse_mirror", "without_password"]

MIRROR_OF = "mirror-of.txt"
"""File of a mirror that holds the address of the store that it mirrors."""

_LIMIT = 4096


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
