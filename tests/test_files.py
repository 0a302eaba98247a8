"""Durable files: whole or not there, appended or not; each refused step leaves the older state."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache import files
from embedcache.errors import StorageError
from embedcache.files.disk import Disk, set_disk


class FailingDisk(Disk):
    """A disk one kind of whose steps fails, after taking ``taken`` bytes where it writes."""

    def __init__(self, step: str, error: int, taken: int = 0) -> None:
        self._error, self._taken = error, taken
        setattr(self, step, self._write_some if step == "write" else self._refuse)

    def _refuse(self, *_: object) -> None:
        raise OSError(self._error, os.strerror(self._error))

    def _write_some(self, descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        os.pwrite(descriptor, bytes(pieces[0])[: self._taken], offset)
        raise OSError(self._error, os.strerror(self._error))


class ByteAtATime(Disk):
    """A disk that takes one byte a time."""

    def write(self, descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        return os.pwrite(descriptor, pieces[0][:1], offset)


@pytest.fixture
def on_disk() -> Iterator[None]:
    yield
    set_disk(Disk())


def test_crc32c_is_castagnolis() -> None:
    assert files.crc32c(b"123456789") == 0xE3069283
    assert files.crc32c(b"") == 0


@given(st.binary(min_size=1))
def test_crc32c_is_the_same_for_every_kind_of_buffer(data: bytes) -> None:
    assert files.crc32c(data) == files.crc32c(bytearray(data)) == files.crc32c(memoryview(data))


def test_a_written_file_replaces_the_older_one_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert files.write_file(path, b"old") == 3
    assert files.write_file(path, [b"n", b"", memoryview(b"ew")]) == 3
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["b"]


def test_a_file_of_many_pieces_holds_them_all_in_order(tmp_path: Path) -> None:
    pieces = [bytes([number % 251]) * 3 for number in range(2000)] + [b"x" * (9 << 20), b"end"]
    assert files.write_file(tmp_path / "b", pieces) == sum(map(len, pieces))
    assert (tmp_path / "b").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("step", ["open_new", "write", "fsync", "replace"])
def test_a_refused_write_leaves_the_older_file(tmp_path: Path, step: str, on_disk: None) -> None:
    path = tmp_path / "b"
    files.write_file(path, b"old")
    set_disk(FailingDisk(step, errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left") as caught:
        files.write_file(path, b"new")
    assert "Free some space" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_a_failure_of_the_source_leaves_no_litter(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        files.write_file(tmp_path / "b", pieces())
    assert list(tmp_path.iterdir()) == []


def test_an_exclusive_file_is_made_once(tmp_path: Path) -> None:
    files.create_file(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        files.create_file(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_exclusive_file_is_made_once_where_there_are_no_hard_links(tmp_path: Path, on_disk: None) -> None:
    set_disk(FailingDisk("link", errno.EPERM))
    test_an_exclusive_file_is_made_once(tmp_path)


def test_an_exclusive_file_on_a_full_disk_is_a_storage_error(tmp_path: Path, on_disk: None) -> None:
    set_disk(FailingDisk("link", errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"):
        files.create_file(tmp_path / "x", b"first")
    assert list(tmp_path.iterdir()) == []


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


def test_a_file_without_any_line_break_is_one_torn_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("torn" * 40_000)
    assert files.append_line(tmp_path / "log", "one") == 0
    assert (tmp_path / "log").read_text() == "one\n"


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_refused_append_leaves_the_file_as_it_was(tmp_path: Path, step: str, on_disk: None) -> None:
    path = tmp_path / "log"
    files.append_line(path, "one")
    set_disk(FailingDisk(step, errno.ENOSPC, taken=2))
    with pytest.raises(StorageError):
        files.append_line(path, "two")
    assert path.read_text() == "one\n"


def test_short_writes_are_continued(tmp_path: Path, on_disk: None) -> None:
    set_disk(ByteAtATime())
    files.append_line(tmp_path / "log", "abc")
    files.write_file(tmp_path / "file", [b"ab", b"cd"])
    assert (tmp_path / "log").read_text() == "abc\n"
    assert (tmp_path / "file").read_bytes() == b"abcd"


def test_a_file_is_cut_or_the_refusal_named(tmp_path: Path, on_disk: None) -> None:
    files.write_file(tmp_path / "a", b"abcdef")
    files.cut_file(tmp_path / "a", 3)
    assert (tmp_path / "a").read_bytes() == b"abc"
    set_disk(FailingDisk("truncate", errno.EIO))
    with pytest.raises(StorageError, match="Input/output error"):
        files.cut_file(tmp_path / "a", 1)


def test_litter_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "a.1.partial", "deep/b.2.partial", "deep/b", "my-notes.partial", ".3.partial"):
        files.write_file(tmp_path / name, b"x")
    (tmp_path / "link.1.partial").symlink_to(tmp_path / "a")
    assert files.remove_litter(tmp_path, deep=False) == 1
    assert files.remove_litter(tmp_path) == 1
    kept = [".3.partial", "a", "b", "deep", "link.1.partial", "my-notes.partial"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == kept


def test_removing_says_whether_there_was_something(tmp_path: Path, on_disk: None) -> None:
    files.write_file(tmp_path / "a", b"x")
    assert files.remove_file(tmp_path / "a")
    assert not files.remove_file(tmp_path / "a")
    files.write_file(tmp_path / "a", b"x")
    set_disk(FailingDisk("unlink", errno.EROFS))
    with pytest.raises(StorageError, match="Read-only"):
        files.remove_file(tmp_path / "a")


def test_removing_a_tree_removes_links_and_not_what_they_point_to(tmp_path: Path, on_disk: None) -> None:
    files.write_file(tmp_path / "kept" / "a", b"x")
    files.write_file(tmp_path / "tree" / "deep" / "b", b"x")
    (tmp_path / "tree" / "deep" / "out").symlink_to(tmp_path / "kept")
    set_disk(FailingDisk("rmdir", errno.EACCES))
    with pytest.raises(StorageError, match="Permission denied"):
        files.remove_tree(tmp_path / "tree")
    set_disk(Disk())
    files.remove_tree(tmp_path / "tree")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]


def test_canonical_json_does_not_depend_on_order_and_refuses_nan() -> None:
    assert files.canonical_json({"b": 1, "a": [1.5, "ä"]}) == '{"a":[1.5,"\\u00e4"],"b":1}'
    with pytest.raises(ValueError):
        files.canonical_json(float("nan"))


# ---- what a process that was killed left behind is not taken for durable


class Notes(Disk):
    """A disk that notes which folders were fsynced."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def fsync_folder(self, folder: Path) -> None:
        self.folders.append(folder)
        super().fsync_folder(folder)


def test_a_folder_that_is_there_is_made_durable_once_and_again_when_it_is_another(
    tmp_path: Path, on_disk: None
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)  # by a process that was killed before it fsynced anything
    notes = Notes()
    set_disk(notes)
    files.make_folder(folder)
    assert notes.folders[-2:] == [tmp_path, tmp_path / "a"]
    notes.folders.clear()
    files.make_folder(folder)
    assert notes.folders == []
    folder.rmdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other").rename(folder)
    files.make_folder(folder)
    assert notes.folders in ([], [tmp_path / "a"])  # the system may give the number of the old one again
    files.remove_tree(tmp_path / "a")
    files.make_folder(folder)
    assert folder.is_dir()


def test_the_name_of_a_file_that_is_there_is_made_durable_by_the_first_line(
    tmp_path: Path, on_disk: None
) -> None:
    (tmp_path / "log").write_text("")
    notes = Notes()
    set_disk(notes)
    for line in ("one", "two"):
        files.append_line(tmp_path / "log", line)
    assert notes.folders.count(tmp_path) == 1
    files.append_line(tmp_path / "log2", "one")
    assert notes.folders.count(tmp_path) == 2


def test_names_and_contents_that_somebody_else_wrote_are_made_durable(tmp_path: Path, on_disk: None) -> None:
    (tmp_path / "a").write_text("x")
    notes = Notes()
    set_disk(notes)
    files.sync_file(tmp_path / "a")
    files.sync_names(tmp_path)
    files.sync_names(tmp_path / "missing")
    assert notes.folders[-1] == tmp_path
    set_disk(FailingDisk("fsync", errno.EIO))
    with pytest.raises(StorageError, match="Input/output error"):
        files.sync_file(tmp_path / "a")
    set_disk(FailingDisk("fsync_folder", errno.EIO))
    with pytest.raises(StorageError, match="Input/output error"):
        files.sync_names(tmp_path)


def test_a_line_is_refused_before_its_first_byte_where_the_file_ends_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.append_line(path, "one", at=0)
    for at in (0, 3, 8):
        with pytest.raises(StorageError, match="somebody else"):
            files.append_line(path, "two", at=at)
    assert path.read_text() == "one\n"
    with path.open("a") as stream:
        stream.write("torn")
    assert files.append_line(path, "two", at=4) == 4
    assert path.read_text() == "one\ntwo\n"
