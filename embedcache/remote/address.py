"""Turns what names a store or a volume into whether it is somewhere else, and how it may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def is_remote(text: str) -> bool:
    """Whether this is an address rather than a path."""
    return "://" in text


def without_password(url: str) -> str:
    """An address as it may be shown and recorded: without a user's name and password, without ``?token=…``."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def one_name(url: str) -> str:
    """The one spelling of an address: scheme and host in lower case, no slash at its end, no fragment."""
    parts = urlsplit(url.strip())
    user, at, host = parts.netloc.rpartition("@")
    host = (
        host if parts.scheme.lower() == "s3" else host.lower()
    )  # of s3:// it is a bucket, whose name is kept
    return urlunsplit((parts.scheme.lower(), f"{user}{at}{host}", parts.path.rstrip("/"), parts.query, ""))
