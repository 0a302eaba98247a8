"""Durable files: whole or not there, appended or not, locked by the living only."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache import files
from embedcache.errors import LockedError, StorageError


def test_crc32c_is_castagnolis() -> None:
    assert files.crc32c(b"123456789") == 0xE3069283
    assert files.crc32c(b"") == 0


@given(st.binary(min_size=1))
def test_crc32c_is_the_same_for_every_kind_of_buffer(data: bytes) -> None:
    assert files.crc32c(data) == files.crc32c(bytearray(data)) == files.crc32c(memoryview(data))


def test_a_written_file_replaces_the_older_one_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert files.write_file(path, b"old") == 3
    assert files.write_file(path, [b"n", memoryview(b"ew")]) == 3
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refused_write_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "b"
    files.write_file(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), refuse)
        with pytest.raises(StorageError, match="No space left") as caught:
            files.write_file(path, b"new")
    assert "Free some space" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_an_exclusive_file_is_made_once(tmp_path: Path) -> None:
    files.create_file(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        files.create_file(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_exclusive_file_is_made_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_an_exclusive_file_is_made_once(tmp_path)


def test_a_full_disk_does_not_keep_a_lock_from_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with files.exclusive_lock(tmp_path / "lock"), pytest.raises(LockedError, match="another process"):
        files.exclusive_lock(tmp_path / "lock").__enter__()


def test_a_file_in_the_place_of_a_folder_is_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(StorageError, match="another path"):
        files.write_file(tmp_path / "a" / "b" / "c", b"x")


def test_appending_cuts_off_a_torn_line_and_says_where_the_new_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert files.append_line(path, "one") == 0
    with path.open("a") as stream:
        stream.write("torn" * 40_000)
    assert files.append_line(path, "two") == 4
    assert path.read_text() == "one\ntwo\n"


def test_a_refused_append_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    files.append_line(path, "one")
    real = os.pwrite

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        real(descriptor, bytes(data)[:2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(StorageError):
            files.append_line(path, "two")
    assert path.read_text() == "one\n"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:1], offset))
    files.append_line(tmp_path / "log", "abc")
    assert (tmp_path / "log").read_text() == "abc\n"


def test_a_second_writer_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    guarded = tmp_path / "store"
    holder = rf"store is being written by process {os.getpid()}"
    with files.exclusive_lock(tmp_path / "lock"), pytest.raises(LockedError, match=holder):
        files.exclusive_lock(tmp_path / "lock", guarded=guarded).__enter__()
    with files.exclusive_lock(tmp_path / "lock"):
        pass


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    ready, held = os.pipe()
    child = os.fork()
    if child == 0:
        with files.exclusive_lock(tmp_path / "lock"):
            os.write(held, b"x")
            signal.pause()
    os.read(ready, 1)
    with pytest.raises(LockedError), files.exclusive_lock(tmp_path / "lock"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with files.exclusive_lock(tmp_path / "lock"):
        pass


def test_litter_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "a.1.partial", "deep/b.2.partial", "deep/b"):
        files.write_file(tmp_path / name, b"x")
    (tmp_path / "link.partial").symlink_to(tmp_path / "a")
    assert files.remove_litter(tmp_path, deep=False) == 1
    assert files.remove_litter(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "deep", "link.partial"]


def test_canonical_json_does_not_depend_on_order_and_refuses_nan() -> None:
    assert files.canonical_json({"b": 1, "a": [1.5, "ä"]}) == '{"a":[1.5,"\\u00e4"],"b":1}'
    with pytest.raises(ValueError):
        files.canonical_json(float("nan"))
