"""Keeps the memory that a process frees for its next use, instead of giving it back to the system.

Each image that a CPU encodes takes and frees buffers of tens of megabytes. Given back, they are asked for anew and
every page is touched for the first time again: a tenth of the time of vit_tiny, a third in a dask worker, whose
nanny tells the allocator to give back what it can (``MALLOC_TRIM_THRESHOLD_=65536``).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Of glibc's ``mallopt`` (malloc.h)."""

_KEPT = 2**31 - 1
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """For the whole process, from now on; its size stays what it was at most. False where it is not known how.

    For processes that are our own, the command and its workers: what a user's own process frees is theirs to keep
    or to give back.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    taken = [mallopt(_TRIM_THRESHOLD, _KEPT), mallopt(_TOP_PAD, _GROWTH), mallopt(_MMAP_MAX, 0)]
    return taken == [1, 1, 1]
