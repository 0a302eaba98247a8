"""A disk that is interrupted at one of the steps that change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from embedcache.files.disk import Disk


class InterruptedDisk(Disk):
    """Does ``act`` in place of the ``at``-th step that changes the disk; half of it if it is a write."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._left, self._act = at, act

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()

    def write(self, descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        if self._left == 1:
            whole = b"".join(pieces)
            super().write(descriptor, [memoryview(whole[: len(whole) // 2])], offset)
        self._step()
        return super().write(descriptor, pieces, offset)


def _counted(name: str) -> Callable:
    def step(disk: InterruptedDisk, *arguments: Any) -> Any:
        disk._step()
        return getattr(Disk, name)(disk, *arguments)

    return step


for _name in (
    "open_new",
    "open_kept",
    "fsync",
    "fsync_folder",
    "truncate",
    "replace",
    "link",
    "mkdir",
    "unlink",
):
    setattr(InterruptedDisk, _name, _counted(_name))


def refuse() -> None:
    raise OSError(28, "No space left on device")
