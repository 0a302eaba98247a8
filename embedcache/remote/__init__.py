"""WHAT LIES ELSEWHERE: turns addresses into bytes, asked for again when a connection fails, and kept here."""

from __future__ import annotations

from urllib.parse import urlsplit

from embedcache.errors import InputError
from embedcache.remote.address import is_remote, without_password
from embedcache.remote.fsspec_source import FsspecSource
from embedcache.remote.s3 import S3Source
from embedcache.remote.sources import HttpSource, Source

__all__ = ["Source", "is_remote", "open_source", "without_password"]


def open_source(url: str, *, anon: bool | None = None) -> Source:
    """The folder behind an address, of which nothing is read yet.

    Parameters
    ----------
    url : str
        ``https://…``, ``s3://…``, or any other address that fsspec knows: ``gs://…``, ``memory://…``.
    anon : bool, optional
        Whether to ask without credentials; of ``s3://`` only.

    Raises
    ------
    InputError
        When what it needs is not installed, or ``anon`` does not apply.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme == "s3":
        return S3Source(url, anon=anon)
    if anon is not None:
        raise InputError(
            f"{without_password(url)}: --anon and --no-anon are for s3:// addresses.",
            hint="A user and password go into the address: https://USER:PASSWORD@HOST/…",
        )
    return HttpSource(url) if scheme in ("http", "https") else FsspecSource(url)
