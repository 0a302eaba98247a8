"""embedcache, broken on purpose by ``--broken NAME``: a row that does not notice it would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from embedcache.store import EncodeSpec
from embedcache.store import shard as shard_module
from embedcache.store.state import StoreState
from embedcache.store.writer import StoreWriter

from . import power


class Everything:
    """A set that holds everything."""

    def __contains__(self, _: object) -> bool:
        return True


def _reader_without_records() -> None:
    """Embeddings are compared with the checksum behind them, not with the journal's."""
    StoreState.accepted = lambda *_: Everything()  # type: ignore[assignment,method-assign]


def _reader_without_checksums() -> None:
    """Embeddings are compared with nothing."""
    _reader_without_records()

    class Agreeable(int):
        def to_bytes(self, *_: Any, **__: Any) -> bytes:  # type: ignore[override]
            return Agreement(4)

    class Agreement(bytes):
        def __eq__(self, _: object) -> bool:
            return True

        def __ne__(self, _: object) -> bool:
            return False

        __hash__ = bytes.__hash__

    real = shard_module.crc32c
    shard_module.crc32c = lambda data: Agreeable(real(data))  # type: ignore[assignment]


def _early_word() -> None:
    """A commit is acknowledged before it is made: it is made when the next one is asked for."""
    commit = StoreWriter.commit_shard
    waiting: list[tuple[int, dict[str, Any]]] = []

    def commit_shard(writer: StoreWriter, shard: int, **given: Any) -> int:
        for number, values in waiting:
            commit(writer, number, **values)
        waiting[:] = [(shard, given)]
        return 0

    StoreWriter.commit_shard = commit_shard  # type: ignore[assignment,method-assign]


def _no_fsync() -> None:
    """The contents of files are never fsynced."""
    power.RecordingDisk.fsync = lambda *_: None  # type: ignore[assignment,method-assign]


def _no_fsync_of_folders() -> None:
    """The names in folders are never fsynced."""
    power.RecordingDisk.fsync_folder = lambda *_: None  # type: ignore[assignment,method-assign]


def _no_comparison() -> None:
    """A store is added to, whatever made it."""
    EncodeSpec.differences = lambda *_: {}  # type: ignore[assignment,method-assign]


BROKEN: dict[str, Callable[[], None]] = {
    "reader without checksums": _reader_without_checksums,
    "reader without records": _reader_without_records,
    "commits acknowledged early": _early_word,
    "no fsync": _no_fsync,
    "no fsync of folders": _no_fsync_of_folders,
    "no comparison of specs": _no_comparison,
}
