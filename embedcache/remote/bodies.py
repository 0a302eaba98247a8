"""Turns the answer of a web server into its bytes, never more of them than a limit."""

from __future__ import annotations

import mmap
import re

import requests

from embedcache.files import Buffer

REASON_BYTES = 4096
"""Of what a server says beside a refusal."""

STEP_BYTES = 1 << 18
"""Bytes that are taken from a connection at a time."""

MAPPED_BYTES = 1 << 16
"""Memory of so many bytes is asked of the system for itself."""


def reason_of(answer: requests.Response) -> str:
    """The code that an object store names in the body of a refusal; what was read to its end can be used again."""
    found = re.search(rb"<Code>([A-Za-z0-9.]{1,100})</Code>", answer.raw.read(REASON_BYTES) or b"")
    return found[1].decode() if found else ""


def body_of(answer: requests.Response, size: int | None, limit: int) -> Buffer:
    """All that comes, which must not be more than a limit: no server fills the memory."""
    if size is not None:
        body = room(size)
        filled = 0
        while filled < size:
            came = answer.raw.read(min(STEP_BYTES, size - filled))
            if not came:
                break
            body[filled : filled + len(came)] = came
            filled += len(came)
        return body[:filled]
    grown = bytearray()
    for piece in answer.iter_content(STEP_BYTES):
        grown += piece
        if len(grown) > limit:
            raise OSError(f"more than {limit} bytes came")
    return grown


def room(size: int) -> memoryview:
    """Memory for so many bytes.

    Large ones are mapped: of what many threads take and free by turns, the allocator would keep one set for each.
    """
    return memoryview(mmap.mmap(-1, size) if size >= MAPPED_BYTES else bytearray(size))
