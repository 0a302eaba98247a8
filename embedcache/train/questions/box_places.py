"""Turns the names and numbers in a file of boxes into planes, and refuses boxes that lie on none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from embedcache.errors import LabelError, counted
from embedcache.train.questions.box_files import read_boxes
from embedcache.train.questions.user_box import UserBox
from embedcache.train.truth.naming import did_you_mean, listing
from embedcache.volume import Volume

OVERHANG = 1.0
"""Pixels that a box may reach beyond its plane, as programs round; they are cut off."""

_LISTED = 10


class Planes(Protocol):
    """What boxes may lie on: a store, or a volume before it is encoded."""

    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width of a plane."""

    def plane_name(self, plane: int) -> str:
        """What people call it."""


def require_boxes_of(path: str | Path, volume: Volume) -> None:
    """Refuse a file of boxes that do not lie on the planes of a volume, before it is encoded.

    Parameters
    ----------
    path : path
        See :mod:`embedcache.train.questions.box_files`.
    volume : Volume
        At the level that will be encoded, and without a recipe that makes other planes of its own.

    Raises
    ------
    LabelError
        As :func:`embedcache.train.questions.box_prompts.open_boxes`.
    """
    lay_boxes(path, read_boxes(path), volume, volume.n_planes, volume.source)


def lay_boxes(
    path: str | Path, boxes: Sequence[UserBox], planes: Planes, count: int, owner: str
) -> list[int]:
    """The plane of each box.

    Parameters
    ----------
    path : path
        Of their file, for messages.
    boxes : sequence of UserBox
    planes : Planes
        What they lie on.
    count : int
        How many planes there are.
    owner : str
        Whose planes these are, for messages.

    Raises
    ------
    LabelError
        When an image or a plane is not there, or a box lies beyond its plane.
    """
    _require_pixels(boxes, str(path))
    names = _Names([planes.plane_name(plane) for plane in range(count)])
    found = _planes_of(boxes, names, str(path), owner)
    laid = [found[box.image, box.plane] for box in boxes]
    for box, plane in zip(boxes, laid, strict=True):
        where = f"{path}, {box.where}" if box.where else str(path)
        _require_inside(box, planes.plane_size(plane), f"{where}: the box on {planes.plane_name(plane)}")
    return laid


def _planes_of(
    boxes: Sequence[UserBox], names: _Names, path: str, owner: str
) -> dict[tuple[str | None, int | None], int]:
    """The plane of each image name or plane number that the boxes have."""
    found: dict[tuple[str | None, int | None], int] = {}
    unknown: dict[str, str] = {}
    first: dict[tuple[str | None, int | None], UserBox] = {}
    for box in boxes:
        first.setdefault((box.image, box.plane), box)
    for key, box in first.items():
        image, plane = key
        if image is not None:
            place = names.plane_of(image, path)
        elif plane is not None:
            place = plane if plane < names.count else None
        else:
            place = _the_only_plane(names.count, path)
        if place is None:
            unknown[str(plane) if image is None else image] = f" ({box.where})" if box.where else ""
        else:
            found[key] = place
    if unknown:
        what = "plane" if boxes[0].image is None else "image"
        raise LabelError(
            f"{path} names {counted(len(unknown), what)} that {owner} does not have: "
            f"{listing([name + where for name, where in unknown.items()])}.",
            hint=did_you_mean(next(iter(unknown)), names.names)
            + f"There are {counted(names.count, 'plane')}: {listing(names.names)}.",
        )
    return found


def _the_only_plane(count: int, path: str) -> int:
    if count != 1:
        raise LabelError(
            f"{path} does not say on which of the {count} planes its boxes lie.",
            hint="Give it a column image (a file's name) or plane (a number from 0).",
        )
    return 0


class _Names:
    """Names of a store's planes, and their stems."""

    def __init__(self, names: Sequence[str]) -> None:
        self.count = len(names)
        self._exact = {name: plane for plane, name in enumerate(names)}
        self._stems: dict[str, list[int]] = {}
        for plane, name in enumerate(names):
            self._stems.setdefault(_stem(name), []).append(plane)
        self.names = names

    def plane_of(self, image: str, path: str) -> int | None:
        """The plane of a name; None when there is none."""
        if image in self._exact:
            return self._exact[image]
        alike = self._stems.get(_stem(image), [])
        if len(alike) > 1:
            listed = ", ".join(self.names[plane] for plane in alike[:_LISTED])
            raise LabelError(
                f"{path} names the image {image}, which could be {listed}.", hint="Give whole names."
            )
        return alike[0] if alike else None


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _require_pixels(boxes: Sequence[UserBox], path: str) -> None:
    """Refuse shares of an image, 0 to 1, as some programs write them."""
    if all(min(box.x0, box.y0) >= 0 and max(box.x1, box.y1) <= 1 for box in boxes) and any(
        not float(edge).is_integer() for box in boxes for edge in (box.x0, box.y0, box.x1, box.y1)
    ):
        raise LabelError(
            f"All edges of {path} lie between 0 and 1: they seem to be shares of the image.",
            hint="Give pixels: x0 and x1 times the width, y0 and y1 times the height.",
        )


def _require_inside(box: UserBox, size: tuple[int, int], where: str) -> None:
    height, width = size
    least, most = min(box.x0, box.y0), (box.x1 - width, box.y1 - height)
    if (
        least < -OVERHANG
        or max(most) > OVERHANG
        or box.x0 >= width
        or box.y0 >= height
        or min(box.x1, box.y1) <= 0
    ):
        raise LabelError(
            f"{where} reaches from ({box.x0:g}, {box.y0:g}) to ({box.x1:g}, {box.y1:g}); the plane is {width} px "
            f"wide and {height} high.",
            hint="Boxes are in pixels of the level that was encoded, (x, y) from the top left corner.",
        )
