"""Turns a URL into a file whose digest is right: resumed when cut, refused when wrong.

Bytes gather in ``NAME.partial`` beside the final name. A cut connection, or a killed process, leaves them
there; the next try asks the server for the rest (HTTP Range) and starts anew where the server does not know
how. Only a file with the right digest gets its final name.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests
import xxhash

from embedcache.errors import WeightsError
from embedcache.files import PARTIAL_SUFFIX, exclusive_lock, publish_file, storage_error
from embedcache.progress import Progress, Silent

_PIECE = 2**20
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces


class ConnectionCut(Exception):  # noqa: N818 - inside this module only: what came so far is kept
    """The connection ended before the file did."""


@dataclass(frozen=True)
class Downloader:
    """Downloads files with known digests.

    Parameters
    ----------
    progress : Progress
        Told about each MiB.
    attempts : int
        How often to try to get further before giving up.
    pause : float
        Seconds before the second attempt; doubled for each further one.
    """

    progress: Progress = field(default_factory=Silent)
    attempts: int = 4
    pause: float = 1.0

    def fetch(self, url: str, target: Path, digests: Mapping[str, str]) -> None:
        """Download ``url`` to ``target``.

        Parameters
        ----------
        url : str
            http or https.
        target : Path
            Final name; its folder is made when missing.
        digests : mapping of str to str
            By algorithm (sha256, md5, xxh128), in hex; the first is checked.

        Raises
        ------
        WeightsError
            When it cannot be fetched (what came is kept, and the next try goes on from there), or when its
            digest is wrong (nothing is kept).
        LockedError
            When another process is downloading the same file.
        StorageError
            When the disk refuses.
        """
        lock = target.with_name(f".{target.name}.lock")
        with exclusive_lock(lock, guarded=target):
            if target.exists():  # another process has just finished it
                return
            partial = target.with_name(target.name + PARTIAL_SUFFIX)
            self._gather(url, partial)
            wrong = wrong_digest(partial, digests)
            if wrong is not None:
                partial.unlink()
                raise WeightsError(
                    f"{url} gave a file with another digest than expected: {wrong}. It was not kept.",
                    hint="Try again later; when it stays so, the file was replaced at its source.",
                )
            publish_file(partial, target)
            lock.unlink(missing_ok=True)

    def _gather(self, url: str, partial: Path) -> None:
        for attempt in range(self.attempts):
            try:
                self._continue(url, partial)
            except (ConnectionCut, requests.RequestException) as error:
                if attempt + 1 == self.attempts or _is_final(error):
                    have = partial.stat().st_size if partial.exists() else 0
                    kept = f"; {have} bytes are kept in {partial}, and the next try goes on from there"
                    raise WeightsError(
                        f"{url} cannot be downloaded ({_reason(error)}){kept if have else ''}."
                    ) from error
                time.sleep(self.pause * 2**attempt)
            except OSError as error:
                raise storage_error(error, partial) from error
            else:
                return

    def _continue(self, url: str, partial: Path) -> None:
        """One request: the rest of the file, or all of it when the server cannot give a part."""
        have = partial.stat().st_size if partial.exists() else 0
        # Compressed on the way, ranges would count other bytes than ours
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if _total(response) == have:
                    return  # all of it was there already
                partial.unlink()
                raise ConnectionCut("what was kept of it is longer than the file")
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content and _start(response) == have
            if have and not resumed:
                have = 0
            self._receive(response, partial, have)

    def _receive(self, response: requests.Response, partial: Path, have: int) -> None:
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        self.progress.start(
            f"Downloading {partial.name.removesuffix(PARTIAL_SUFFIX)} (MiB)", (total or 0) // _PIECE
        )
        self.progress.advance(have // _PIECE)
        with partial.open("ab" if have else "wb") as stream:
            try:
                for piece in response.iter_content(_PIECE):
                    have += stream.write(piece)
                    self.progress.advance(1)
            finally:
                stream.flush()
                os.fsync(stream.fileno())
                self.progress.finish()
        if total is not None and have != total:
            raise ConnectionCut(f"the connection ended after {have} of {total} bytes")


def wrong_digest(path: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with a file's digest, in words; None when it is right, or none is known.

    Only the first digest given is computed.
    """
    for algorithm, expected in digests.items():
        found = file_digest(path, algorithm)
        return None if found == expected else f"{algorithm} {found} was found, {expected} is expected"
    return None


def file_digest(path: Path, algorithm: str) -> str:
    """Digest of a file's bytes in hex; ``algorithm`` is sha256, md5 or xxh128."""
    with path.open("rb") as stream:
        if algorithm != "xxh128":
            return hashlib.file_digest(stream, algorithm).hexdigest()
        digest = xxhash.xxh128()
        while piece := stream.read(_PIECE):
            digest.update(piece)
        return str(digest.hexdigest())


def _start(response: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _total(response: requests.Response) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _is_final(error: Exception) -> bool:
    """Whether the server said no (such as 404), so that asking again would give the same."""
    if not isinstance(error, requests.HTTPError) or error.response is None:
        return False
    status = error.response.status_code
    asks_for_patience = (requests.codes.request_timeout, requests.codes.too_many_requests)
    return 400 <= status < 500 and status not in asks_for_patience


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "the server did not answer in time"
    if isinstance(error, requests.ConnectionError) and not isinstance(error, requests.exceptions.SSLError):
        return "no connection to the server"
    return str(error)
