"""Disks for tests: one that notes each step, and one on which a chosen step does not happen."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedcache.files import disk as disk_module
from embedcache.files.disk import Disk

STEPS = (
    "open_new",
    "open_kept",
    "write",
    "fsync",
    "fsync_folder",
    "truncate",
    "replace",
    "link",
    "mkdir",
    "unlink",
    "rmdir",
)


class WatchedDisk(Disk):
    """Tells ``before`` the name and arguments of each step before it happens; what that raises is the refusal."""

    def __init__(self, before: Callable[[str, tuple[Any, ...]], None]) -> None:
        for name in STEPS:
            setattr(self, name, self._step(name, before))

    def _step(self, name: str, before: Callable[[str, tuple[Any, ...]], None]) -> Callable[..., Any]:
        real = getattr(Disk, name)

        def step(*arguments: Any) -> Any:
            before(name, arguments)
            return real(self, *arguments)

        return step


@contextmanager
def watched(before: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Write to such a disk, for the block."""
    kept = disk_module.disk
    disk_module.set_disk(WatchedDisk(before))
    try:
        yield
    finally:
        disk_module.set_disk(kept)


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def refusing_rename_to(name: str) -> Callable[[str, tuple[Any, ...]], None]:
    """Refuses to rename a file below a folder of this name; and so leaves what a kill just before would."""

    def before(step: str, arguments: tuple[Any, ...]) -> None:
        if step == "replace" and name in Path(arguments[1]).parts:
            raise full_disk()

    return before


def refusing_lines_with(text: str) -> Callable[[str, tuple[Any, ...]], None]:
    """Refuses to write a journal line in which the text stands."""

    def before(step: str, arguments: tuple[Any, ...]) -> None:
        if step == "write" and any(text.encode() in bytes(piece) for piece in arguments[1]):
            raise full_disk()

    return before
