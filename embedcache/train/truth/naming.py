"""Turns a name that nothing has into a refusal that lists the names there are, and the nearest of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import PurePosixPath

from embedcache.errors import ConfigError

LISTED = 10
"""So many names are listed."""

LOOKED_AT = 10_000
"""Among so many the nearest is looked for."""

_NO_NAMES = re.compile(r"auto|0?\.\d+|\d*:\d*|store:.*", re.DOTALL)


def named_images(spec: str) -> tuple[str, ...]:
    """The words of ``--val`` that name images; none where it is a share, planes, stores or ``auto``."""
    spec = spec.strip()
    return () if _NO_NAMES.fullmatch(spec) else tuple(word.strip() for word in spec.split(","))


def is_called(word: str, name: str) -> bool:
    """Whether a word is the name of an image, or its stem."""
    return word in (name, PurePosixPath(name).stem)


def require_images(spec: str, names: Iterable[str], where: str = "image that is encoded") -> None:
    """Refuse ``--val`` with the names of images where one of them is not among ``names``.

    Parameters
    ----------
    spec : str
        As given; anything but names passes.
    names : iterable of str
        Of the images.
    where : str
        What they are.

    Raises
    ------
    ConfigError
        With the names that there are, and the nearest.
    """
    words = named_images(spec)
    if not words:
        return
    listed = list(dict.fromkeys(names))
    known = {called for name in listed for called in (name, PurePosixPath(name).stem)}
    for word in words:
        if word not in known:
            raise ConfigError(
                f"--val names {word!r}, which is no {where}; there are: {listing(listed)}.",
                hint=did_you_mean(word, listed)
                + "Give planes as A:B, images by name or stem with commas between, or a share such as 0.2.",
            )


def listing(names: Sequence[str]) -> str:
    """At most ten names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A question with the nearest name, or its stem where the word has no ending; empty where none is near."""
    looked_at = list(islice(names, LOOKED_AT))
    whole = bool(PurePosixPath(word).suffix)
    near = get_close_matches(word, [name if whole else PurePosixPath(name).stem for name in looked_at], n=1)
    return f"Did you mean {near[0]}? " if near else ""
