"""Turns one box that somebody drew into a value that knows where in its file it stood."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class UserBox:
    """One box.

    Parameters
    ----------
    image : str or None
        Name of the image it lies on, as the file gives it.
    plane : int or None
        Number of the plane it lies on; None with None: of a volume of one plane.
    x0, y0, x1, y1 : float
        Edges in px of the plane, x0 < x1 and y0 < y1.
    label : str
        What it holds.
    where : str
        Where in its file it stands, ``line 3`` or ``annotations[2]``; of no box's identity.
    """

    image: str | None
    plane: int | None
    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""
    where: str = field(default="", compare=False)
