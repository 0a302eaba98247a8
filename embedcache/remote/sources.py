"""Turns addresses into the bytes that stand there, asked for again when the connection drops or stalls."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import requests

from embedcache.errors import EmbedcacheError, InputError, StorageError
from embedcache.remote.address import without_password

TIMEOUT_SECONDS = (10.0, 30.0)
"""To connect; and how long a server may say nothing."""

PAUSES = (0.2, 1.0)
"""Seconds before each further try."""

FILE_LIMIT = 1 << 30
"""Bytes above which a file is refused that is read as a whole."""

Found = TypeVar("Found")


class Source(Protocol):
    """A folder that is not on this machine."""

    def read(self, name: str, first: int = 0, length: int | None = None) -> bytes:
        """A file's bytes from ``first`` on, so many of them, or all; FileNotFoundError where there is none."""

    def names(self, folder: str) -> list[str] | None:
        """Names of the files of a folder; ``None`` where that cannot be asked."""


class HttpSource:
    """A folder behind http or https, which cannot be listed; the server must serve ranges of bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = without_password(url).rstrip("/")
        self._user = (
            None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
        )
        self._own = threading.local()

    def read(self, name: str, first: int = 0, length: int | None = None) -> bytes:
        """See :class:`Source`."""
        if (
            getattr(self._own, "process", None) != os.getpid()
        ):  # nor do processes that forked share connections
            self._own.process, self._own.session = os.getpid(), requests.Session()
            self._own.session.auth = self._user
        session: requests.Session = self._own.session
        headers = {"Accept-Encoding": "identity"}
        if length is not None:
            headers["Range"] = f"bytes={first}-{first + length - 1}"
        with session.get(
            f"{self._url}/{name}", headers=headers, timeout=TIMEOUT_SECONDS, stream=True
        ) as answer:
            if answer.status_code in (404, 410):
                raise FileNotFoundError(f"{self._url}/{name}")
            if 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
                raise StorageError(f"{self._url}/{name}: the server refuses ({answer.status_code}).")
            answer.raise_for_status()
            if length is not None and answer.status_code != 206:
                raise InputError(
                    f"{self._url} serves whole files only; embeddings are read as parts of files.",
                    hint="Copy the store to this machine, or serve it by a server that knows byte ranges.",
                )
            body = _body(answer, FILE_LIMIT if length is None else length)
        if len(body) != (int(answer.headers.get("Content-Length", len(body))) if length is None else length):
            raise OSError(f"{self._url}/{name}: {len(body)} bytes came")
        return body

    def names(self, folder: str) -> list[str] | None:
        """See :class:`Source`."""
        return None


def _body(answer: requests.Response, limit: int) -> bytes:
    """All that comes, which must not be more than a limit: no server fills the memory."""
    body = bytearray()
    for piece in answer.iter_content(1 << 20):
        body += piece
        if len(body) > limit:
            raise OSError(f"more than {limit} bytes came")
    return bytes(body)


def again_and_again(fetch: Callable[[], Found], what: str) -> Found:
    """What ``fetch`` gives, at the third try at the latest.

    Raises
    ------
    FileNotFoundError, EmbedcacheError
        At once.
    StorageError
        When no try gave it.
    """
    for pause in (*PAUSES, None):
        try:
            return fetch()
        except (FileNotFoundError, EmbedcacheError):
            raise
        except Exception as error:  # of other people's libraries: whatever it is, it may pass
            if pause is None:
                reason = str(error).strip() or type(error).__name__
                raise StorageError(
                    f"{what} cannot be read: {reason.splitlines()[0]}",
                    hint="Look at the connection; the same command goes on with what was fetched before.",
                ) from error
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")
