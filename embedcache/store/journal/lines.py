"""Turns records into checksummed lines of an append-only file, and such lines back into records.

A line is one JSON object whose last member is ``"crc32c"``: the CRC-32C, as 8 hex digits, of all bytes of the
line before ``,"crc32c":``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedcache.errors import InputError, command
from embedcache.files import canonical_json, crc32c

CREATED = "created.jsonl"
"""Journal file that is written whole: when the store is created, and when its journal is compacted."""

MAIN = "main.jsonl"
"""Journal file of what concerns the whole store, and of a writer that holds all of it."""

SUFFIX = ".jsonl"

LINE_LIMIT = 64 << 20
"""Bytes above which a line is refused: a file without line breaks must not fill the memory."""

TAIL_BYTES = len(',"crc32c":"00000000"}')
"""Bytes of a line's checksum and what is around it."""


def hint_for(root: Path) -> str:
    """The way out of a damaged journal, as a command that can be copied."""
    return f"`{command('repair', root)}` mends what can be mended."


def shards_file(shards: range) -> str:
    """Name of the journal file of a writer of some shards."""
    return f"shards-{shards.start:08d}-{shards.stop:08d}{SUFFIX}"


def encode_line(record: Mapping[str, Any]) -> str:
    """One journal line, without its line break.

    Raises
    ------
    InputError
        When it is longer than any reader would accept.
    """
    body = canonical_json(record)[:-1]
    if len(body) + TAIL_BYTES > LINE_LIMIT:
        raise InputError(
            f"A record of {len(body):,} bytes is too long for the journal ({LINE_LIMIT:,} at most).",
            hint="Add fewer images at once, or narrow the selection.",
        )
    return body + line_tail(body.encode("ascii")).decode("ascii")


def line_tail(body: bytes) -> bytes:
    """What ends a line: the checksum of the bytes before it."""
    return f',"crc32c":"{crc32c(body):08x}"}}'.encode("ascii")


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or ``None`` when the line differs from its checksum."""
    body, tail = line[:-TAIL_BYTES], line[-TAIL_BYTES:]
    if not body or tail != line_tail(body):
        return None
    try:
        record = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
