"""Locks: the living exclude each other and are named, the dead do not block, parts live side by side."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import LockedError, StorageError
from embedcache.files import Claim, exclusive_lock, living_claims, mutex, range_lock
from embedcache.files import locks as locks_module
from embedcache.files.disk import Disk, set_disk

spans = st.one_of(
    st.none(), st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda t: range(*sorted(t)))
)


@contextmanager
def another_process(hold: Callable[[], object]) -> Iterator[int]:
    """A process that holds a lock until it is killed; yields its number once it does."""
    ready, held = os.pipe()
    child = os.fork()
    if child == 0:
        with hold():  # type: ignore[attr-defined]
            os.write(held, b"x")
            signal.pause()
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(held)


def test_a_second_writer_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    guarded = tmp_path / "store"
    holder = rf"store is being written by process {os.getpid()}"
    with exclusive_lock(tmp_path / "lock"), pytest.raises(LockedError, match=holder):
        exclusive_lock(tmp_path / "lock", guarded=guarded).__enter__()
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    held = another_process(lambda: exclusive_lock(tmp_path / "lock"))
    with held, pytest.raises(LockedError), exclusive_lock(tmp_path / "lock"):
        pass
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "lock"):
        start = time.monotonic()
        with pytest.raises(LockedError):
            exclusive_lock(tmp_path / "lock", wait=0.1).__enter__()
        assert time.monotonic() - start >= 0.1
    held = threading.Event()

    def hold() -> None:
        with exclusive_lock(tmp_path / "lock"):
            held.set()
            time.sleep(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with exclusive_lock(tmp_path / "lock", wait=10.0):
        holder.join()


@given(mine=spans, others=spans)
def test_two_claims_overlap_when_they_share_a_shard(mine: range | None, others: range | None) -> None:
    def shards(span: range | None) -> set[int]:
        return set(range(20)) if span is None else set(span)

    expected = None in (mine, others) or bool(shards(mine) & shards(others))
    assert Claim(mine, "x").overlaps(others) == expected


def test_parts_live_side_by_side_and_an_overlapping_writer_is_told_which_shards_are_held(
    tmp_path: Path,
) -> None:
    journal = tmp_path / "journal"
    with (
        another_process(lambda: range_lock(journal, range(0, 4), guarded=tmp_path)) as first,
        another_process(lambda: range_lock(journal, range(4, 8), guarded=tmp_path)),
    ):
        for span in (range(3, 5), None):
            with pytest.raises(
                LockedError, match=rf"shards 0 to 3 are being written by process {first} on|shards 4"
            ):
                range_lock(journal, span, guarded=tmp_path).__enter__()
        with range_lock(journal, range(8, 9), guarded=tmp_path):
            found = living_claims(journal)
            assert {claim.shards for claim in found} == {range(0, 4), range(4, 8), range(8, 9)}
    assert living_claims(journal) == []
    assert list((journal / "locks").iterdir()) == []


def test_the_whole_store_is_nobody_elses(tmp_path: Path) -> None:
    whole = range_lock(tmp_path, None, guarded=tmp_path)
    with whole, pytest.raises(LockedError, match="the whole store is being written by process"):
        range_lock(tmp_path, range(5, 6), guarded=tmp_path).__enter__()
    with range_lock(tmp_path, range(5, 6), guarded=tmp_path):
        pass


def test_a_killed_part_does_not_block_and_leaves_no_lock_file(tmp_path: Path) -> None:
    with another_process(lambda: range_lock(tmp_path, range(0, 4), guarded=tmp_path)):
        pass
    assert len(list((tmp_path / "locks").iterdir())) == 1
    with range_lock(tmp_path, None, guarded=tmp_path):
        assert len(list((tmp_path / "locks").iterdir())) == 1


def test_on_a_full_disk_a_lock_without_words_holds_everything(tmp_path: Path) -> None:
    class Full(Disk):
        def write(self, *_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    set_disk(Full())
    try:
        first = range_lock(tmp_path, range(0, 1), guarded=tmp_path)
        with first, pytest.raises(LockedError, match="another process"):
            range_lock(tmp_path, range(7, 8), guarded=tmp_path).__enter__()
    finally:
        set_disk(Disk())


def test_the_mutex_is_for_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "MUTEX_SECONDS", 0.05)
    with mutex(tmp_path, guarded=tmp_path), pytest.raises(LockedError):
        mutex(tmp_path, guarded=tmp_path).__enter__()


def test_a_file_system_that_grants_every_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(StorageError, match=r"file system \(.+ mounted at /.*\) grants the same lock twice"):
        exclusive_lock(tmp_path / "lock").__enter__()


def test_a_file_system_that_refuses_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="refuses to lock files") as caught:
        range_lock(tmp_path, None, guarded=tmp_path).__enter__()
    assert "Lustre" in str(caught.value)


def test_a_link_in_the_place_of_a_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="lock"):
        exclusive_lock(tmp_path / "lock").__enter__()
    assert not (tmp_path / "elsewhere").exists()
