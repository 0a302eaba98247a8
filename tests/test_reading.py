"""Reading inside a store: regular files only, no link followed, nothing longer than it may be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from embedcache.errors import CorruptionError
from embedcache.files import open_inside, read_inside, require_no_links


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "store" / "a" / "b").mkdir(parents=True)
    (tmp_path / "store" / "a" / "b" / "c").write_bytes(b"content")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    return tmp_path / "store"


def test_a_regular_file_is_read_whole(root: Path) -> None:
    assert read_inside(root, root / "a" / "b" / "c", 7) == b"content"


def test_a_longer_file_than_can_be_right_is_not_read(root: Path) -> None:
    os.truncate(root / "a" / "b" / "c", 1 << 40)  # sparse: its metadata claims a terabyte
    with pytest.raises(CorruptionError, match="at most 64"):
        read_inside(root, root / "a" / "b" / "c", 64)


def test_a_missing_file_is_missing(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_inside(root, root / "a" / "x" / "c")
    with pytest.raises(NotADirectoryError):
        open_inside(root, root / "a" / "b" / "c" / "d")


def test_no_link_is_followed_wherever_it_stands(root: Path) -> None:
    (root / "file").symlink_to(root.parent / "outside" / "secret")
    (root / "folder").symlink_to(root.parent / "outside")
    (root / "a" / "inside").symlink_to(root / "a" / "b")
    for path in (root / "file", root / "folder" / "secret", root / "a" / "inside" / "c"):
        with pytest.raises(CorruptionError, match="is a link"):
            open_inside(root, path)
        with pytest.raises(CorruptionError, match="is a link"):
            require_no_links(root, path)
    require_no_links(root, root / "a" / "b" / "not there yet")


def test_the_store_itself_may_be_reached_by_a_link(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    assert read_inside(root.parent / "link", root.parent / "link" / "a" / "b" / "c", 100) == b"content"


def test_what_is_no_file_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
        for name in ("pipe", "folder", "socket"):
            with pytest.raises(CorruptionError, match="no regular file"):
                open_inside(root, root / name)
