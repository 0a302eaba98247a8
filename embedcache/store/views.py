"""Turns the segments of a tile table into look-ups: which tile is a view of which.

A store with views has, behind the rows of its tiles as they lie (the *base* tiles), further rows for the same
places in other views. A *segment* is a run of such rows: one view of some planes, in the order of their base rows.
Of an array each segment covers all planes, so that tile ``i`` of the base is tile ``N₀·j + i`` of segment ``j``;
images that come later get their base rows, then their view rows, at the end. Numbers never change.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import CorruptionError
from embedcache.store.metadata import NO_TILE, TILE_COLUMNS

VIEW_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""In which views are appended: flips first, so that flips and then d4 are numbered as d4 at once."""

Ints = npt.NDArray[np.int64]
_BASE_COLUMNS = len(TILE_COLUMNS)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows of the tile table.

    Parameters
    ----------
    view : int
        0 to 7; the first segment has view 0.
    first_plane, end_plane : int
        The planes whose tiles it has.
    """

    view: int
    first_plane: int
    end_plane: int

    @property
    def values(self) -> list[int]:
        """As JSON values."""
        return [self.view, self.first_plane, self.end_plane]


def read_segments(values: Any) -> tuple[Segment, ...]:
    """Segments of a journal record; none: views were announced, and are not there yet.

    Raises
    ------
    ValueError, TypeError
        When they cannot be.
    """
    segments = tuple(Segment(*(_whole(value) for value in entry)) for entry in values)
    covered = {0: 0}
    for segment in segments:
        if not (0 <= segment.view < 8 and segment.first_plane == covered.get(segment.view, 0)):
            raise ValueError(f"{segment} does not go on where its view ends")
        if segment.end_plane <= segment.first_plane:
            raise ValueError(f"{segment} has no planes")
        if segment.view and segment.end_plane > covered[0]:
            raise ValueError(f"{segment} has views of tiles that are not there")
        covered[segment.view] = segment.end_plane
    return segments


def views_record(n_tiles: int, segments: Sequence[Segment]) -> dict[str, Any]:
    """Journal record of all segments of the tile table, of so many tile numbers.

    Without segments it only announces that views may come, so that readers that know none stop there.
    """
    return {"kind": "views", "tiles": n_tiles, "segments": [segment.values for segment in segments]}


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} in a segment")
    return value


def grown(segments: Sequence[Segment], planes: int, views: Collection[int]) -> tuple[Segment, ...]:
    """The segments of a table that has to have so many planes, and these views beside those it has.

    Those that are there stay where they are. None, when no view but 0 is there or asked for.
    """
    known = {segment.view for segment in segments}
    if not (known | set(views)) - {0}:
        return ()
    result = list(segments)
    for view in VIEW_ORDER:
        if view == 0 or view in known or view in views:
            end = max((segment.end_plane for segment in result if segment.view == view), default=0)
            if end < planes:
                result.append(Segment(view, end, planes))
    return tuple(result)


def table_of(base: Ints, segments: Sequence[Segment], *, uniform: bool) -> Ints:
    """The table of some segments.

    Parameters
    ----------
    base : ndarray of int64, shape (N₀, 5)
        The base tiles of all planes, in the order of the grid.
    segments : sequence of Segment
        Its segments; none: the table is the base.
    uniform : bool
        Whether it is of an array.

    Returns
    -------
    ndarray of int64, shape (N, 5) or (N, 6)
    """
    if not segments:
        return base
    parts = []
    for segment in segments:
        rows = base
        if not uniform:
            first, end = np.searchsorted(base[:, 0], [segment.first_plane, segment.end_plane])
            rows = base[first:end]
        parts.append(np.column_stack([rows, np.where(rows[:, 0] >= 0, segment.view, NO_TILE)]))
    return np.concatenate(parts)


def base_rows(table: Ints, segments: Sequence[Segment], *, uniform: bool) -> Ints:
    """The base tiles (N₀, 5) of a table, in the order of the grid."""
    if not segments:
        return table[:, :_BASE_COLUMNS]
    if uniform:
        return table[: len(table) // len(segments), :_BASE_COLUMNS]
    return table[table[:, _BASE_COLUMNS] == 0, :_BASE_COLUMNS]


def planes_of(table: Ints) -> int:
    """Planes that have tiles."""
    return int(table[:, 0].max(initial=-1)) + 1


@dataclass(frozen=True, eq=False)
class Numbering:
    """Which number of a table is which view of which.

    Parameters
    ----------
    path : Path
        Of the store, for messages.
    table : ndarray of int64, shape (N, 5) or (N, 6)
        The table.
    segments : tuple of Segment
        Its segments.
    uniform : bool
        Whether it is of an array.
    """

    path: Path
    table: Ints
    segments: tuple[Segment, ...]
    uniform: bool

    @property
    def views(self) -> tuple[int, ...]:
        """The views that have rows, ascending."""
        return tuple(sorted({0, *(segment.view for segment in self.segments)}))

    @cached_property
    def view_of(self) -> Ints:
        """The view of each number, (N,); 0 also where there is no tile. Read-only."""
        views = np.zeros(len(self.table), np.int64)
        if self.segments:
            views = np.maximum(self.table[:, _BASE_COLUMNS], 0)
        views.flags.writeable = False
        return views

    @cached_property
    def having(self) -> Ints:
        """The numbers that have a tile, ascending. Read-only."""
        having = np.flatnonzero(self.table[:, 0] >= 0)
        having.flags.writeable = False
        return having

    @cached_property
    def base(self) -> npt.NDArray[np.bool_]:
        """Numbers of base tiles, (N,). Read-only."""
        base = np.asarray((self.table[:, 0] >= 0) & (self.view_of == 0))
        base.flags.writeable = False
        return base

    @cached_property
    def base_of(self) -> Ints:
        """The base number at the place of each number, (N,). Read-only.

        Raises
        ------
        CorruptionError
            When the table is not that of its segments.
        """
        numbers = np.arange(len(self.table), dtype=np.int64)
        if self.segments and self.uniform:
            numbers %= self._of_one_view
        elif self.segments:
            base = np.flatnonzero(self.base)
            planes = self.table[base, 0]
            parts = [
                base[slice(*np.searchsorted(planes, [segment.first_plane, segment.end_plane]))]
                for segment in self.segments
            ]
            numbers = np.concatenate(parts)
            if len(numbers) != len(self.table):
                raise self._broken()
        numbers.flags.writeable = False
        return numbers

    def at_place_of(self, base: int) -> Ints:
        """All numbers at the place of a base tile, ascending."""
        if not self.segments:
            return np.array([base], dtype=np.int64)
        if self.uniform:
            return np.arange(base, len(self.table), self._of_one_view, dtype=np.int64)
        order, sorted_bases = self._by_base
        first, end = np.searchsorted(sorted_bases, [base, base + 1])
        found: Ints = order[first:end]
        return found

    @cached_property
    def _of_one_view(self) -> int:
        """Rows of each view of an array, whose segments are one of all planes for each view."""
        views = {segment.view for segment in self.segments}
        ends = {segment.end_plane for segment in self.segments}
        if len(views) < len(self.segments) or len(ends) > 1 or len(self.table) % len(self.segments):
            raise self._broken()
        return len(self.table) // len(self.segments)

    @cached_property
    def _by_base(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.base_of, kind="stable")
        return order, self.base_of[order]

    def _broken(self) -> CorruptionError:
        return CorruptionError(f"{self.path}: the tile table has not the rows that the journal says.")
