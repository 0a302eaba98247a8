"""Turns a crop of a plane into the pieces of the storage grid that must be decoded for it.

A source is decoded chunk by chunk (strip by strip, image by image), whatever a read asks for. The same grid tells
the planner which tiles share pieces, and the reader which of them to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """A box of pixels that is decoded and kept as one; ends excluded."""

    z0: int
    z1: int
    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows and columns."""
        return self.z1 - self.z0, self.y1 - self.y0, self.x1 - self.x0

    def __str__(self) -> str:
        return f"planes {self.z0}:{self.z1}, rows {self.y0}:{self.y1}, columns {self.x0}:{self.x1}"


class ReadPlan(Protocol):
    """What a run is going to read, in which order."""

    @property
    def grid(self) -> PieceGrid | None:
        """In which parts chunks are kept; None where each crop decides by itself."""

    def uses(self, piece: Piece) -> Sequence[tuple[int, int]]:
        """Ascending places in the order at which a piece is read, each with the number of reads there."""


@dataclass(frozen=True)
class SourceReads:
    """What was decoded of a source.

    Parameters
    ----------
    chunks : int
        Pieces (chunks, strips, images) decoded, repetitions counted.
    bytes : int
        Decoded bytes.
    """

    chunks: int = 0
    bytes: int = 0

    def __sub__(self, before: SourceReads) -> SourceReads:
        return SourceReads(self.chunks - before.chunks, self.bytes - before.bytes)


@dataclass(frozen=True)
class PieceGrid:
    """The storage grid of a uniform source, and the parts of its chunks that are kept as one.

    Parameters
    ----------
    size : tuple of int
        Planes, height and width of the source.
    chunk : tuple of int
        Planes, rows and columns of what is decoded at once.
    pixel_bytes : int
        Bytes of one decoded pixel, colours included.
    kept : tuple of int, optional
        Planes, rows and columns of the parts that are kept, counted from the start of each chunk; whole chunks by
        default. A smaller part needs less memory, and each part decodes its whole chunk.
    """

    size: tuple[int, int, int]
    chunk: tuple[int, int, int]
    pixel_bytes: int
    kept: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.kept == (0, 0, 0):
            object.__setattr__(self, "kept", self.chunk)

    @property
    def piece_bytes(self) -> int:
        """Decoded bytes of one part."""
        return self.kept[0] * self.kept[1] * self.kept[2] * self.pixel_bytes

    def cut(self, axis: int, length: int) -> PieceGrid:
        """Chunks kept in parts of a length along an axis."""
        kept = list(self.kept)
        kept[axis] = min(length, self.chunk[axis])
        return replace(self, kept=(kept[0], kept[1], kept[2]))

    def thin(self, pieces: int, limit_bytes: int) -> PieceGrid:
        """Cut along z as far as so many parts of one layer take no more than half of a memory."""
        plane_bytes = pieces * self.kept[1] * self.kept[2] * self.pixel_bytes
        deepest = min(self.chunk[0], max(1, limit_bytes // 2 // plane_bytes))
        parts = -(-self.chunk[0] // deepest)
        return self.cut(0, -(-self.chunk[0] // parts))  # about equal ones

    def thin_for(self, rows: tuple[int, int], columns: tuple[int, int], limit_bytes: int) -> PieceGrid:
        """:meth:`thin` for one crop."""
        return self.thin(len(self.spans(1, *rows)) * len(self.spans(2, *columns)), limit_bytes)

    def index(self, axis: int, pixels: Ints) -> Ints:
        """The place along an axis of the part that each pixel lies in."""
        chunk, inside = np.divmod(pixels, self.chunk[axis])
        place: Ints = chunk * -(-self.chunk[axis] // self.kept[axis]) + inside // self.kept[axis]
        return place

    def spans(self, axis: int, first: int, end: int) -> list[tuple[int, int]]:
        """Edges of the parts around pixels ``first:end`` of an axis."""
        chunk, kept = self.chunk[axis], self.kept[axis]
        start = first // chunk * chunk + first % chunk // kept * kept
        found = []
        while start < end:
            stop = min(start + kept, start // chunk * chunk + chunk, self.size[axis])
            found.append((start, stop))
            start = stop
        return found

    def has(self, piece: Piece) -> bool:
        """Whether a piece is one of its parts."""
        edges = ((piece.z0, piece.z1), (piece.y0, piece.y1), (piece.x0, piece.x1))
        return all(self.spans(axis, *edge) == [edge] for axis, edge in enumerate(edges))

    def around(self, plane: int, rows: tuple[int, int], columns: tuple[int, int]) -> list[Piece]:
        """The parts around a crop of one plane, row by row."""
        ((z0, z1),) = self.spans(0, plane, plane + 1)
        across = self.spans(2, *columns)
        return [Piece(z0, z1, y0, y1, x0, x1) for y0, y1 in self.spans(1, *rows) for x0, x1 in across]
