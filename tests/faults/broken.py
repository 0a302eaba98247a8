"""embedcache, broken on purpose: a row that does not notice it would prove nothing.

``python -m tests.faults --broken NAME`` runs rows like that. ``OMP_NUM_THREADS=1 python -m tests.faults.broken``
runs each of them against the row that has to notice it, and prints what that noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedcache.store import EncodeSpec
from embedcache.store.journal.state import StoreState
from embedcache.store.reading import mapped
from embedcache.store.shards import shard as shard_module
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
    for module in (shard_module, mapped):
        module.crc32c = lambda data, before=0: Agreeable(real(data, before))  # type: ignore[assignment]


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


BROKEN: dict[str, tuple[Callable[[], None], str, tuple[str, ...]]] = {
    "reader without checksums": (_reader_without_checksums, "flip-shards", ("silent",)),
    "reader without records": (_reader_without_records, "swapped-shards", ("silent",)),
    "commits acknowledged early": (_early_word, "kill-encode", ("lost", "failed")),
    "no fsync": (_no_fsync, "power-encode", ("lost", "failed")),
    "no fsync of folders": (_no_fsync_of_folders, "power-encode", ("lost", "failed")),
    "no comparison of specs": (_no_comparison, "mixed-resume", ("silent",)),
}
"""What breaks embedcache, the row that has to notice it, and the counts of which one has to be above 0."""

ROUNDS = {"mixed-resume": 30}
"""More rounds than the usual 10: another volume alone is found by its pixels too, so models must be tried."""


def main() -> None:
    """Run them all, each in a process of its own."""
    from .harness import run_part, start
    from .stage import Stage
    from .table import named

    folder = Path(tempfile.mkdtemp(prefix="embedcache-broken-"))
    try:
        start(folder)
        for name, (damage, row, _) in BROKEN.items():
            if os.fork() == 0:
                damage()
                stage = Stage(folder / "base", folder / "work")
                stage.fresh()
                outcome = run_part(named([row])[0], stage, 0, 1, rounds=ROUNDS.get(row, 10), seed=0)
                (folder / f"{name}.json").write_text(json.dumps(asdict(outcome)))
                os._exit(0)
            os.wait()
        found = {name: json.loads((folder / f"{name}.json").read_text()) for name in BROKEN}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
