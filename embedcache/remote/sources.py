"""Turns addresses into the bytes that stand there, asked for again when the connection drops or stalls."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import requests

from embedcache.errors import EmbedcacheError, InputError, StorageError
from embedcache.files import Buffer
from embedcache.remote.address import without_password
from embedcache.remote.bodies import body_of, reason_of

TIMEOUT_SECONDS = (10.0, 30.0)
"""To connect; and how long a server may say nothing."""

PAUSES = (0.2, 1.0, 4.0)
"""Seconds before each further try."""

LONGEST_PAUSE = 30.0
"""Seconds that a server may ask for by Retry-After."""

FILE_LIMIT = 1 << 30
"""Bytes above which a file is refused that is read as a whole."""

Found = TypeVar("Found")


class Source(Protocol):
    """A folder that is not on this machine."""

    @property
    def identity(self) -> str:
        """What tells its files from those of any other; may hold secrets, so only digests of it are kept."""

    def read(self, name: str, first: int = 0, length: int | None = None, *, limit: int = FILE_LIMIT) -> bytes:
        """A file's bytes from ``first`` on, so many of them, or all; FileNotFoundError where there is none.

        A negative ``first`` counts from the file's end, as in a slice. A whole file of more than ``limit`` bytes
        is refused.
        """

    def fetch(
        self, name: str, first: int = 0, length: int | None = None, *, limit: int = FILE_LIMIT
    ) -> Buffer:
        """The same bytes, where they are many in memory that goes back to the system when they are let go."""

    def names(self, folder: str) -> list[str] | None:
        """Names of the files of a folder; ``None`` where that cannot be asked."""


class RefusedError(StorageError):
    """A server that refuses to give a file.

    Attributes
    ----------
    status : int
        What it answered, 400 to 499.
    reason : str
        The code that an object store names, such as ``AccessDenied``; empty otherwise.
    """

    def __init__(self, message: str, *, status: int, reason: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status, self.reason = status, reason


class HttpSource:
    """A folder behind http or https, which cannot be listed; the server must serve ranges of bytes.

    Parameters
    ----------
    url : str
        May hold a user and a password; a query (``?token=…``) goes along with every request.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = without_password(url).rstrip("/")
        self._query = parts.query
        self._user = (
            None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
        )
        self._own = threading.local()

    @property
    def identity(self) -> str:
        """See :class:`Source`: the address with its query, which may choose between volumes."""
        return f"{self._url}?{self._query}" if self._query else self._url

    def read(self, name: str, first: int = 0, length: int | None = None, *, limit: int = FILE_LIMIT) -> bytes:
        """See :class:`Source`."""
        return bytes(self.fetch(name, first, length, limit=limit))

    def fetch(
        self, name: str, first: int = 0, length: int | None = None, *, limit: int = FILE_LIMIT
    ) -> Buffer:
        """See :class:`Source`."""
        headers = {"Accept-Encoding": "identity"}
        if length is not None:
            headers["Range"] = f"bytes={first}-{first + length - 1}" if first >= 0 else f"bytes={first}"
        with self._ask(name, headers) as answer:
            self._require_found(answer, name)
            if length is not None and answer.status_code != 206:
                raise InputError(
                    f"{self._url} serves whole files only; parts of files are needed.",
                    hint="Copy it to this machine, or serve it by a server that knows byte ranges.",
                )
            said = answer.headers.get("Content-Length", "")
            encoded = (
                "Content-Encoding" in answer.headers
            )  # though it was not asked for: buckets keep files so
            size = int(said) if said.isdigit() and not encoded else None
            most = limit if length is None else length
            if size is not None and size > most:
                raise OSError(f"{size} bytes were offered, at most {most} were expected")
            body = body_of(answer, size, most)
        if len(body) != (length if length is not None else len(body) if size is None else size):
            raise OSError(f"{self._url}/{name}: {len(body)} bytes came")
        return body

    def names(self, folder: str) -> list[str] | None:
        """See :class:`Source`."""
        return None

    def _ask(self, name: str, headers: dict[str, str]) -> requests.Response:
        """The answer to one request, whose body has not been read yet."""
        return self._session.get(
            self._address(name), headers=headers, timeout=TIMEOUT_SECONDS, stream=True, auth=self._auth()
        )

    @property
    def _session(self) -> requests.Session:
        # Neither threads nor processes that forked share connections.
        if getattr(self._own, "process", None) != os.getpid():
            self._own.process, self._own.session = os.getpid(), requests.Session()
        session: requests.Session = self._own.session
        return session

    def _auth(self) -> tuple[str, str] | requests.auth.AuthBase | None:
        """What requests are authorised by; requests drops it where a server sends one on to another host."""
        return self._user

    def _address(self, name: str) -> str:
        """Where a file is asked for."""
        address = f"{self._url}/{name}" if name else self._url
        return urlunsplit(urlsplit(address)._replace(query=self._query)) if self._query else address

    def _require_found(self, answer: requests.Response, name: str) -> None:
        """Refuse what is no file: FileNotFoundError, RefusedError, or an error that is worth another try."""
        status, where = answer.status_code, f"{self._url}/{name}"
        if status >= 400:
            reason_of(answer)
        if status in (404, 410):
            raise FileNotFoundError(where)
        if status == 401:
            raise RefusedError(
                f"{where}: the server needs a user and password (401)"
                f"{', and refuses the ones given' if self._user else ''}.",
                status=status,
                hint="Give them in the address: https://USER:PASSWORD@HOST/…",
            )
        if 400 <= status < 500 and status not in (408, 429):
            raise RefusedError(f"{where}: the server refuses ({status}).", status=status)
        answer.raise_for_status()


def again_and_again(
    fetch: Callable[[], Found], what: str, *, again: Callable[[], None] = lambda: None
) -> Found:
    """What ``fetch`` gives, at the last of a few tries at the latest; ``again`` is called before each further try.

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
            if _is_of_certificates(error):
                raise StorageError(
                    f"{what} cannot be read: the server's certificate is not trusted here ({_line(error)}).",
                    hint="If it is signed by an authority of your own, name its file in REQUESTS_CA_BUNDLE.",
                ) from error
            if pause is None:
                raise StorageError(
                    f"{what} cannot be read: {_line(error)}",
                    hint="Look at the connection; the same command goes on with what was fetched before.",
                ) from error
            time.sleep(max(pause, _asked_pause(error)))
            again()
    raise AssertionError("the last try returns or raises")


def _line(error: Exception) -> str:
    """What went wrong, in one line without the address, whose query may be a secret."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"the server answered {answer.status_code} {answer.reason or ''}".rstrip()
    cause: object = error
    while isinstance(cause, requests.RequestException) and cause.args:
        cause = getattr(cause.args[0], "reason", None) or cause.args[0]
    text = (str(cause).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(
        r"^<?[\w.]+(?: object at \w+>|\(.*?\)): ", "", text
    )  # of urllib3: the connection's own name
    return re.sub(r"\?\S+", "", text)


def _is_of_certificates(error: Exception) -> bool:
    """Whether no further try could help."""
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY" in str(error)


def _asked_pause(error: Exception) -> float:
    """Seconds that a server asks to be left alone."""
    answer = getattr(error, "response", None)
    said = "" if answer is None else str(answer.headers.get("Retry-After", ""))
    return min(float(said), LONGEST_PAUSE) if said.isdigit() else 0.0
