"""Turns what names a store or a volume into whether it is somewhere else, and how it may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def is_remote(text: str) -> bool:
    """Whether this is an address rather than a path."""
    return "://" in text


def without_password(url: str) -> str:
    """An address as it may be shown and recorded: without a user's name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
