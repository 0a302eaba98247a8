"""Turns an address of any file system that fsspec knows into a ``Source``: gs://, memory:// and others."""

from __future__ import annotations

from embedcache.errors import InputError
from embedcache.files import Buffer
from embedcache.remote.address import without_password
from embedcache.remote.sources import FILE_LIMIT


class FsspecSource:
    """A folder on any file system that fsspec knows: s3://, gs://, memory://.

    Raises
    ------
    InputError
        When fsspec, or what it needs for this address, is not installed.
    """

    def __init__(self, url: str) -> None:
        self.identity = url
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{without_password(url)} cannot be opened: {error}.", hint="pip install 'embedcache[remote]'"
            ) from error

    def read(self, name: str, first: int = 0, length: int | None = None, *, limit: int = FILE_LIMIT) -> bytes:
        """See :class:`~embedcache.remote.sources.Source`."""
        path = f"{self._root}/{name}" if name else self._root
        if length is None:
            end: int | None = limit + 1
        else:
            end = None if first < 0 else first + length
        body = bytes(self._system.cat_file(path, start=first, end=end))
        if length is None and len(body) > limit:
            raise OSError(f"more than {limit} bytes came")
        if length is not None and len(body) != length:
            raise OSError(f"{len(body)} of {length} bytes came")
        return body

    def fetch(
        self, name: str, first: int = 0, length: int | None = None, *, limit: int = FILE_LIMIT
    ) -> Buffer:
        """See :class:`~embedcache.remote.sources.Source`."""
        return self.read(name, first, length, limit=limit)

    def names(self, folder: str) -> list[str] | None:
        """See :class:`~embedcache.remote.sources.Source`."""
        self._system.invalidate_cache()
        return [
            str(path).rpartition("/")[2] for path in self._system.ls(f"{self._root}/{folder}", detail=False)
        ]
