"""WHAT LIES ELSEWHERE: turns addresses into bytes, asked for again when a connection fails, and kept here."""

from __future__ import annotations

from urllib.parse import urlsplit

from embedcache.errors import InputError
from embedcache.remote.address import is_remote, without_password
from embedcache.remote.fsspec_source import FsspecSource
from embedcache.remote.sources import HttpSource, Source

__all__ = ["Source", "is_remote", "open_source", "without_password"]


def open_source(url: str, *, anon: bool | None = None) -> Source:
    """The folder behind an address, of which nothing is read yet.

    Parameters
    ----------
    url : str
        ``https://…``, ``s3://…``, ``gs://…``, ``memory://…``.
    anon : bool, optional
        Whether to ask without credentials.

    Raises
    ------
    InputError
        When what it needs is not installed, or ``anon`` does not apply.
    """
    if anon is not None:
        raise InputError(f"{without_password(url)}: asking with or without credentials is not supported yet.")
    return HttpSource(url) if urlsplit(url).scheme in ("http", "https") else FsspecSource(url)
