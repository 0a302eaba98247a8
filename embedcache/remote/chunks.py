"""Turns names of chunks of a volume that is elsewhere into their bytes: each fetched once, and kept here.

What a server does not have is remembered, for it is the fill value and not worth a second request. A server that
may not tell whether a file exists (an object store of which one may not list the names) refuses with 403: that
means "missing" only where it gives the array's own metadata right after it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from embedcache.errors import StorageError, VolumeError
from embedcache.files import Buffer, digest_json, sha256_hex
from embedcache.remote.fetched import Fetched
from embedcache.remote.kept import DIGESTS, KeptFiles
from embedcache.remote.sources import FILE_LIMIT, RefusedError, Source, again_and_again
from embedcache.remote.witness import Witness

CHUNKS = Path("~/.cache/embedcache/chunks")
"""Where chunks are kept, unless $EMBEDCACHE_CHUNKS names another folder."""

CHUNK_CACHE_BYTES = 20 << 30
"""Bytes of chunks of all volumes that are kept, unless told otherwise."""

PARALLEL = 16
"""Requests at a time."""

LONGER = 1 << 20
"""Bytes by which a stored chunk may exceed its raw size: codecs make some data larger."""

FAILURES = 20
"""So many fetches in a row that fail, each after all its tries, end a run."""

MISSING_REMEMBERED = 1 << 20
"""Names of missing chunks that are remembered, about 150 bytes each."""

ENDS_BYTES = 16 << 20
"""Of the ends of files (a shard's index is there), which are asked for with every chunk of a shard."""

Key = tuple[str, int, int | None]


class ChunkSource:
    """The files of a volume that is elsewhere; threads may share it.

    Parameters
    ----------
    source : Source
        Where they are.
    url : str
        Its address as it may be shown.
    folder : Path or None
        Where chunks are kept; None for nowhere.
    limit : int
        Bytes that are kept there at most, of all volumes together.
    parallel : int
        Requests at a time.
    """

    def __init__(
        self, source: Source, url: str, *, folder: Path | None, limit: int, parallel: int = PARALLEL
    ) -> None:
        self.url, self.parallel = url, parallel
        self._source = source
        self._kept = None if folder is None or limit <= 0 else KeptFiles(folder, limit, only=DIGESTS)
        self._folder, self._digest = sha256_hex(source.identity.encode()), ""
        self._witness, self._anew = Witness(lambda: None), 0
        self._longest = FILE_LIMIT
        self._lock = threading.Lock()
        self._asking = threading.BoundedSemaphore(parallel)
        self._flights: dict[Key, Future[Buffer | None]] = {}
        self._missing: dict[str, None] = {}
        self._ends: OrderedDict[Key, Buffer] = OrderedDict()
        self._fetched = Fetched()
        self._failures = 0
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    @property
    def fetched(self) -> Fetched:
        """What was asked for so far."""
        with self._lock:
            return self._fetched

    @property
    def threads(self) -> ThreadPoolExecutor:
        """As many threads as requests may be under way; a process that was forked has its own."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), ThreadPoolExecutor(self.parallel, "embedcache-fetch")
            return self._pool[1]

    def identify(self, digest: str, witness: str, raw_bytes: int) -> None:
        """Say of which array chunks are read from now on, so that they may be kept.

        Parameters
        ----------
        digest, witness : str
            Digest of the array's metadata (a volume that was replaced has other chunks), and its file's name.
        raw_bytes : int
            Decoded bytes of what one file holds.
        """
        self._digest, self._longest = digest, raw_bytes + LONGER
        self._witness = Witness(partial(self._ask, (witness, 0, None), FILE_LIMIT))

    def metadata(self, name: str) -> bytes | None:
        """A whole small file, asked for anew; None where there is none.

        Raises
        ------
        RefusedError
            When the server refuses it.
        StorageError
            When the server cannot be reached.
        """
        try:
            return bytes(self._ask((name, 0, None), FILE_LIMIT))
        except FileNotFoundError:
            return None

    def get(self, name: str, first: int = 0, length: int | None = None) -> Buffer | None:
        """A file of the array, or a part of it; None where there is none.

        A negative ``first`` counts from its end.

        Raises
        ------
        VolumeError
            When it cannot be had; another one may.
        StorageError
            When the server refuses, or nothing could be had for long.
        """
        key = name, first, length
        with self._lock:
            if name in self._missing:
                return None
            if key in self._ends:
                return self._ends[key]
            flight = self._flights.get(key)
            if flight is None:
                mine = self._flights[key] = Future[Buffer | None]()
        if flight is not None:
            return flight.result()
        try:
            mine.set_result(self._load(key))
        except BaseException as error:
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._flights[key]
        return mine.result()

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Meanwhile nothing that was kept is taken: it may have come damaged."""
        with self._lock:
            self._anew += 1
            self._ends.clear()
        try:
            yield
        finally:
            with self._lock:
                self._anew -= 1

    def close(self) -> None:
        """Let go of the threads."""
        with self._lock:
            pool = self._pool
            self._pool = None
            self._ends.clear()
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False, cancel_futures=True)

    def _load(self, key: Key) -> Buffer | None:
        name = f"{self._folder}/{digest_json([self._digest, *key])}"
        body: Buffer | None = None if self._kept is None or self._anew else self._kept.read(name)
        if body is not None:
            self._count(from_disk=1)
        else:
            body = self._fetch(key)
            if body is not None and self._kept is not None:
                self._kept.keep(name, body)
        if body is not None and key[1] < 0:
            self._remember_end(key, body)
        return body

    def _fetch(self, key: Key) -> Buffer | None:
        """What the server says now; None where it has none."""
        try:
            body = self._ask(key, self._longest)
        except FileNotFoundError:
            self._remember_missing(key[0])
            return None
        except StorageError as error:
            refused = error.status if isinstance(error, RefusedError) else 0
            if refused == 403 and self._witness.gives(time.monotonic()):
                self._remember_missing(key[0])
                return None
            if refused in (401, 403):
                raise
            raise self._failed(error) from error
        self._failures = 0
        return body

    def _ask(self, key: Key, limit: int) -> Buffer:
        read = partial(self._source.fetch, *key, limit=limit)
        self._count(requests=1)
        with self._asking:
            body = again_and_again(read, f"{self.url}/{key[0]}", again=partial(self._count, retries=1))
        self._count(bytes=len(body))
        return body

    def _remember_missing(self, name: str) -> None:
        self._failures = 0
        self._count(missing=1)
        with self._lock:
            self._missing[name] = None
            if len(self._missing) > MISSING_REMEMBERED:
                del self._missing[next(iter(self._missing))]

    def _failed(self, error: StorageError) -> VolumeError | StorageError:
        """The error of one chunk; after too many in a row that of the whole volume."""
        self._failures += 1
        if self._failures < FAILURES:
            return VolumeError(error.message, hint=error.hint)
        return StorageError(f"{error.message} (the {self._failures}th in a row)", hint=error.hint)

    def _remember_end(self, key: Key, body: Buffer) -> None:
        with self._lock:
            self._ends[key] = body
            while sum(map(len, self._ends.values())) > ENDS_BYTES:
                self._ends.popitem(last=False)

    def _count(self, **more: int) -> None:
        with self._lock:
            now = self._fetched
            self._fetched = replace(now, **{name: getattr(now, name) + by for name, by in more.items()})


def chunk_folder() -> Path:
    """Where chunks are kept on this machine."""
    return Path(os.environ.get("EMBEDCACHE_CHUNKS") or CHUNKS).expanduser().absolute()
