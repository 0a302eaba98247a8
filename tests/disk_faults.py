"""A disk that is interrupted at one of the steps that change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from other_disks import WatchedDisk, full_disk

from embedcache.files.disk import Disk


class InterruptedDisk(WatchedDisk):
    """Does ``act`` in place of the ``at``-th step that changes the disk; half of it if it is a write."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.left, self._act = at, act
        super().__init__(self._before)

    def _before(self, step: str, arguments: tuple[Any, ...]) -> None:
        self.left -= 1
        if self.left:
            return
        if step == "write":
            descriptor, pieces, offset = arguments
            whole = b"".join(pieces)
            Disk.write(self, descriptor, [memoryview(whole[: len(whole) // 2])], offset)
        self._act()


def refuse() -> None:
    raise full_disk()
