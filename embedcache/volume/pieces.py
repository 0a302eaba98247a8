"""Turns a crop of a plane into the pieces of the storage grid that must be decoded for it.

A source is decoded chunk by chunk (strip by strip, image by image), whatever a read asks for. The same grid tells
the planner which tiles share pieces, and the reader which of them to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

REQUEST_BYTES = 32 << 20
"""Neighbouring chunks are asked for together up to so many decoded bytes, so that a library decodes them side by
side; larger requests would hold too much beside what is kept."""


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
    def thickness(self) -> int | None:
        """Planes of a chunk that are kept at once; None where each crop decides by itself."""

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
    """The storage grid of a uniform source.

    Parameters
    ----------
    size : tuple of int
        Planes, height and width of the source.
    piece : tuple of int
        Planes, rows and columns of what is decoded at once.
    pixel_bytes : int
        Bytes of one decoded pixel, colours included.
    """

    size: tuple[int, int, int]
    piece: tuple[int, int, int]
    pixel_bytes: int

    def thickness(self, pieces: int, limit_bytes: int) -> int:
        """Planes of a chunk that are kept at once when a crop takes so many chunks: all, if memory allows.

        Then each chunk is decoded several times, for some of its planes each.
        """
        plane_bytes = pieces * self.piece[1] * self.piece[2] * self.pixel_bytes
        deepest = min(self.piece[0], max(1, limit_bytes // 2 // plane_bytes))
        parts = -(-self.piece[0] // deepest)
        return -(-self.piece[0] // parts)

    def around(
        self, plane: int, rows: tuple[int, int], columns: tuple[int, int], thickness: int
    ) -> list[list[Piece]]:
        """The pieces around a crop of one plane, those of one row of the grid together."""
        depth, height, width = self.piece
        start = plane // depth * depth
        z0 = start + (plane - start) // thickness * thickness
        z1 = min(z0 + thickness, start + depth, self.size[0])
        return [
            [
                Piece(z0, z1, y0, min(y0 + height, self.size[1]), x0, min(x0 + width, self.size[2]))
                for x0 in range(columns[0] // width * width, columns[1], width)
            ]
            for y0 in range(rows[0] // height * height, rows[1], height)
        ]

    def count(self, rows: tuple[int, int], columns: tuple[int, int]) -> int:
        """Pieces of one layer around a crop."""
        down = -(-rows[1] // self.piece[1]) - rows[0] // self.piece[1]
        return down * (-(-columns[1] // self.piece[2]) - columns[0] // self.piece[2])

    def requests(self, row: Sequence[Piece], request_bytes: int = REQUEST_BYTES) -> list[list[Piece]]:
        """A row of neighbours cut into requests of at most so many bytes, each of one piece at least."""
        planes, height, _ = row[0].shape
        at_once = max(1, request_bytes // (planes * height * self.piece[2] * self.pixel_bytes))
        return [list(row[first : first + at_once]) for first in range(0, len(row), at_once)]
