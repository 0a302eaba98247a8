"""Turns a seed into planes, and into triples of planes, that are drawn at random and yet always the same.

Drawn by SHA-256, not by a library's generator, whose numbers may be others in its next version. The first triples
are the same however many are asked for.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from math import comb

from embedcache.errors import VolumeError

Triple = tuple[int, int, int]

_RANDOM = re.compile(r"random:(\d+)(?::(\d+))?")
_MOST = 1 << 31
"""Tile numbers of a store lie below this, and so does whatever is drawn."""


def is_random(text: str) -> bool:
    """Whether a text asks for something drawn, well written or not."""
    return text.strip().lower().startswith("random")


def parse_random(text: str, option: str) -> tuple[int, int]:
    """``random:N[:SEED]`` as N and the seed, 0 where none is given.

    Raises
    ------
    VolumeError
        When it is no such text; how many there may be is for the volume to say.
    """
    found = _RANDOM.fullmatch(text.strip().lower().replace(" ", ""))
    if found is None:
        raise VolumeError(
            f"{option} {text}: expected random:N or random:N:SEED, such as random:200 or random:200:1."
        )
    return int(found[1]), int(found[2] or 0)


@lru_cache(maxsize=8)
def draw_tuples(planes: int, count: int, seed: int) -> tuple[Triple, ...]:
    """Draw triples of different planes.

    Parameters
    ----------
    planes : int
        Planes to draw from.
    count : int
        Triples, no two of them alike.
    seed : int
        Others for each.

    Returns
    -------
    tuple of (int, int, int)
        Each ascending, in the order in which they were drawn.

    Raises
    ------
    VolumeError
        When there are not so many.
    """
    there = comb(planes, 3)
    if not 1 <= count <= min(there, _MOST):
        raise VolumeError(
            f"--channels random:{count}: N must lie between 1 and {min(there, _MOST):,}, the number of different "
            f"triples of {planes} planes."
            if there
            else f"--channels random:{count} needs at least three planes; the volume has {planes}."
        )
    return tuple(map(_triple, _drawn(there, count, f"triples:{planes}:{seed}")))


def draw_planes(planes: int, count: int, seed: int) -> tuple[int, ...]:
    """Draw different planes, ascending.

    Raises
    ------
    VolumeError
        When there are not so many.
    """
    if not 1 <= count <= planes:
        raise VolumeError(
            f"--z-range random:{count}: N must lie between 1 and {planes:,}, the number of planes."
        )
    return tuple(sorted(_drawn(planes, count, f"planes:{planes}:{seed}")))


def _drawn(there: int, count: int, words: str) -> list[int]:
    """The first of a shuffled ``range(there)``, of which only what was moved is kept."""
    moved: dict[int, int] = {}
    found = []
    for place in range(count):
        digest = hashlib.sha256(f"embedcache:{words}:{place}".encode("ascii")).digest()
        other = place + int.from_bytes(digest, "big") % (there - place)
        found.append(moved.get(other, other))
        moved[other] = moved.pop(place, place)
    return found


def _triple(number: int) -> Triple:
    """The triple of a number: all triples in order of their largest plane, then the middle one."""
    high = _largest(number, 3)
    rest = number - comb(high, 3)
    middle = _largest(rest, 2)
    return rest - comb(middle, 2), middle, high


def _largest(number: int, size: int) -> int:
    """The largest n for which ``comb(n, size)`` does not exceed the number."""
    low, above = size - 1, size
    while comb(above, size) <= number:
        low, above = above, 2 * above
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if comb(middle, size) <= number else (low, middle)
    return low
