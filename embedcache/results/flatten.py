"""Turns the planes of a surface volume into the one mask that people want of it, under the name of its fragment.

A surface volume has many planes and one truth: its planes' probabilities are joined pixel by pixel, by their mean
or their largest. What was not predicted has no say; where no plane says anything, nothing is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError
from embedcache.results.planes import Planes
from embedcache.volume.layouts import LAYERS, SURFACE, SURFACES, source_stem, strip_scheme

Floats = npt.NDArray[np.float32]

FLATTEN = ("none", "mean", "max")
"""How several planes become one."""

_IMAGES_OF_FRAGMENTS = ("ir",)


@dataclass(frozen=True)
class Titled:
    """A prediction of one plane that has a name of its own: the ``Id`` of its line in a csv.

    Parameters
    ----------
    inner : Planes
        What is predicted.
    title : str
        The name.
    """

    inner: Planes = field(repr=False)
    title: str

    @property
    def planes(self) -> Sequence[int]:
        """Planes that are predicted."""
        return self.inner.planes

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of every plane."""
        return self.inner.sizes

    @property
    def names(self) -> Sequence[str]:
        """Name of every plane, as it was."""
        return self.inner.names

    @property
    def uniform(self) -> bool:
        """Whether the planes are those of one array."""
        return self.inner.uniform

    def probabilities(self, plane: int) -> Floats:
        """Probabilities of one plane: float32 (height, width), NaN where not predicted."""
        return self.inner.probabilities(plane)


@dataclass(frozen=True)
class Flattened:
    """One plane out of several; they are asked for one after the other, and never held together.

    Parameters
    ----------
    inner : Planes
        Planes of one array.
    how : str
        ``mean`` or ``max`` of probabilities.
    title : str
        What the plane is called, in a csv too.
    """

    inner: Planes = field(repr=False)
    how: str
    title: str

    @property
    def planes(self) -> Sequence[int]:
        """The only one."""
        return (0,)

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Its height and width."""
        return (self.inner.sizes[self.inner.planes[0]],)

    @property
    def names(self) -> Sequence[str]:
        """Its name."""
        return (self.title,)

    @property
    def uniform(self) -> bool:
        """It is an array (1, Y, X)."""
        return True

    def probabilities(self, plane: int) -> Floats:
        """The joined probabilities: float32 (height, width), NaN where no plane was predicted."""
        if plane != 0:
            raise IndexError(f"{self.title} is one plane, 0; there is no plane {plane}.")
        joined = np.full(self.sizes[0], np.nan, np.float32)
        spoken = np.zeros(self.sizes[0], np.uint32)
        for each in self.inner.planes:
            said = self.inner.probabilities(each)
            if self.how == "max":
                np.fmax(joined, said, out=joined)
                continue
            # a running mean stays within 0 to 1 whatever the number of planes; a sum of float32 would drift
            heard = ~np.isnan(said)
            spoken += heard
            first = spoken == 1
            np.copyto(joined, said, where=heard & first)
            step = np.divide(said - joined, spoken, out=np.zeros_like(joined), where=heard & ~first)
            joined += step
        return joined


def flattened(planes: Planes, how: str, name: str | None, *, source: str = "") -> Planes:
    """The planes as they are to be written: joined to one where that is asked for, and named.

    Parameters
    ----------
    planes : Planes
        A prediction.
    how : str
        One of :data:`FLATTEN`.
    name : str, optional
        The ``Id`` of a single plane's line in a csv. By default a plane of a fragment or segment has its folder's
        name, a flattened one that of its volume, any other its own.
    source : str
        Path or address of the volume that was predicted.

    Raises
    ------
    ConfigError
        For another word, for a name of several planes, and for joining images that are no planes of one array.
    """
    check_flatten(how, name)
    if how != "none":
        if not planes.uniform:
            raise ConfigError(
                f"--flatten {how} joins the planes of one array; these are {len(planes.sizes)} images, "
                "each of its own size.",
                hint="Leave --flatten out.",
            )
        return Flattened(planes, how, name or source_stem(source))
    if name is not None and len(planes.planes) != 1:
        raise ConfigError(
            f"--id {name} names one mask, and {len(planes.planes)} planes are predicted.",
            hint="Join them with --flatten mean or --flatten max, or leave --id out.",
        )
    title = name or surface_name(source)
    return Titled(planes, title) if title and len(planes.planes) == 1 else planes


def check_flatten(how: str, name: str | None) -> None:
    """Refuse another way of joining, and a name that cannot stand in a csv or be a file's.

    Raises
    ------
    ConfigError
        As it says.
    """
    if how not in FLATTEN:
        raise ConfigError(f"--flatten is {how!r}; it must be one of {', '.join(FLATTEN)}.")
    if name is not None and (not name.strip() or not name.isprintable()):
        raise ConfigError(f"--id {name!r} is no name.")


def surface_name(source: str) -> str | None:
    """The name of the fragment or segment whose surface volume (or infrared image) a source is; else None."""
    parts = PurePosixPath(strip_scheme(source)[0].rstrip("/")).parts
    if len(parts) < 2:
        return None
    own, around = parts[-1].split(".")[0], parts[-2]
    stem = source_stem(source)
    is_part = own in (SURFACE, LAYERS, *_IMAGES_OF_FRAGMENTS) or around == SURFACES
    return stem if is_part or stem == around else None
