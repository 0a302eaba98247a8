"""Turns the address of a volume into a ``Volume``."""

from __future__ import annotations

from urllib.parse import urlsplit

from embedcache.errors import VolumeError
from embedcache.remote import without_password
from embedcache.volume.volume import Volume


def open_remote(
    url: str, *, level: int = 0, anon: bool | None = None, chunk_cache: int | None = None
) -> Volume:
    """Open a volume that is somewhere else.

    Parameters
    ----------
    url : str
        ``s3://…``, ``https://…``.
    level : int
        Pyramid level.
    anon : bool, optional
        Whether to ask without credentials.
    chunk_cache : int, optional
        Bytes of chunks that are kept on this machine.

    Raises
    ------
    VolumeError
        Always: volumes are read from local paths.
    """
    scheme = urlsplit(url).scheme
    raise VolumeError(
        f"{without_password(url)}: volumes are read from local paths; '{scheme}://' is not supported.",
        hint="Copy the volume, or the level that you need of it, to this machine and give its path.",
    )
