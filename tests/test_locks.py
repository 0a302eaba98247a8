"""Locks: the living exclude each other and are named, the dead do not block, parts live side by side."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import LockedError, StorageError
from embedcache.files import (
    Claim,
    exclusive_lock,
    holder_name,
    is_free,
    living_claims,
    mutex,
    range_lock,
)
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


# ---- what network file systems, forks and people do to locks


def test_locks_work_where_only_a_file_open_for_writing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where flock is a record lock of the server."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        read_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if operation & fcntl.LOCK_EX and read_only:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with another_process(lambda: range_lock(tmp_path, range(0, 2), guarded=tmp_path)):
        with range_lock(tmp_path, range(2, 4), guarded=tmp_path):
            assert len(living_claims(tmp_path)) == 2
        with pytest.raises(LockedError, match="shards 0 to 1"):
            range_lock(tmp_path, range(1, 2), guarded=tmp_path).__enter__()
    (dead,) = (tmp_path / "locks").iterdir()
    assert is_free(dead)
    with range_lock(tmp_path, None, guarded=tmp_path):
        assert not dead.exists()


def test_a_lock_file_of_a_living_writer_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with range_lock(tmp_path, None, guarded=tmp_path):
        (own,) = (tmp_path / "locks").iterdir()
        assert not is_free(own)

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", refuse)
            with pytest.raises(StorageError, match="refuses to lock files"):
                is_free(own)
    assert not is_free(own)


def test_another_users_lock_file_is_looked_at_although_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def denied(path: object, flags: int, *rest: int, **named: int) -> int:
        if str(path).endswith(".lock") and Path(str(path)).parent.name == "locks" and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *rest, **named)  # type: ignore[arg-type]

    with another_process(lambda: range_lock(tmp_path, range(0, 2), guarded=tmp_path)):
        monkeypatch.setattr(os, "open", denied)
        assert [claim.shards for claim in living_claims(tmp_path)] == [range(0, 2)]


def test_a_forked_child_that_leaves_the_block_releases_nothing(tmp_path: Path) -> None:
    with range_lock(tmp_path, None, guarded=tmp_path), ExitStack() as stack:
        stack.enter_context(exclusive_lock(tmp_path / "other"))
        stack.enter_context(range_lock(tmp_path / "more", None, guarded=tmp_path))
        child = os.fork()
        if child == 0:
            stack.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for folder in (tmp_path, tmp_path / "more"):
            with pytest.raises(LockedError):
                range_lock(folder, None, guarded=tmp_path).__enter__()
        with pytest.raises(LockedError, match=holder_name()):
            exclusive_lock(tmp_path / "other").__enter__()


def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_died(tmp_path: Path) -> None:
    """A data loader's worker that outlives its parent must not block the next writer."""
    ready, done = os.pipe()
    parent = os.fork()
    if parent == 0:
        range_lock(tmp_path, None, guarded=tmp_path).__enter__()
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(done, str(worker).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    worker = int(os.read(ready, 20))
    try:
        with range_lock(tmp_path, None, guarded=tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_whose_file_was_removed_is_none(tmp_path: Path) -> None:
    with range_lock(tmp_path, None, guarded=tmp_path) as held:
        held.require()
        child = os.fork()
        if child == 0:
            try:
                held.require()
            except StorageError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        held.path.unlink()
        with pytest.raises(StorageError, match="its lock file was removed"):
            held.require()


def test_who_waits_for_the_mutex_in_vain_is_told_who_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks_module, "MUTEX_SECONDS", 0.05)
    with (
        another_process(lambda: mutex(tmp_path, guarded=tmp_path)) as holder,
        pytest.raises(LockedError, match=f"process {holder} on "),
    ):
        mutex(tmp_path, guarded=tmp_path).__enter__()
    with mutex(tmp_path, guarded=tmp_path), pytest.raises(LockedError, match=holder_name()):
        mutex(tmp_path, guarded=tmp_path).__enter__()
