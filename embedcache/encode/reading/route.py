"""Turns tile columns and a storage grid into the ``Route`` through a volume on which least is decoded twice.

A route goes field by field (a field is a rectangle of columns); through a field in steps along z (a step is some
blocks of planes); through a step column by column, row by row; down a column block by block. What a later part
needs again must be kept meanwhile: the overlap with the next row, the chunk that two steps share. Every route has
its price in memory and in repeated decoding, both known beforehand; the cheapest in decoding that fits is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from embedcache.encode.reading.columns import Columns, Ints, Reach
from embedcache.geometry import PLANES_PER_BLOCK
from embedcache.volume.pieces import PieceGrid

USABLE = 0.9
"""Share of the memory that a route may count on: two readers are never at quite the same place."""

LONGEST_STEP = 16
"""Blocks of one step at most; longer ones would leave whole columns unfinished for too long."""


@dataclass(frozen=True)
class Route:
    """An order of tile columns and plane blocks, with what it costs when every tile is read.

    Parameters
    ----------
    rows, across : int
        Columns of a field along y and x.
    blocks : int
        Plane blocks of a step.
    thickness : int
        Planes of a chunk that are kept at once.
    pieces_kept : int
        Decoded pieces that must be kept for nothing to be decoded twice inside a field.
    decodes : float
        Expected decodes of pieces.
    """

    rows: int
    across: int
    blocks: int
    thickness: int
    pieces_kept: int
    decodes: float

    def order(self, columns: Columns, numbers: Ints) -> Ints:
        """Sort keys of tiles by their numbers."""
        block, column = np.divmod(numbers // PLANES_PER_BLOCK, columns.count)
        iy, ix = np.divmod(column, len(columns.xs))
        step, inside = np.divmod(block, self.blocks)
        fields = iy // self.rows * len(columns.xs) + ix // self.across
        key: Ints = (fields * columns.blocks + step) * columns.count + column
        return key * self.blocks + inside


@dataclass(frozen=True)
class _Axis:
    """Pieces along y or x: of each column the first and the last."""

    first: Ints
    last: Ints

    def fields(self, length: int) -> Ints:
        """Pieces of each field of so many columns."""
        starts = np.arange(0, len(self.first), length)
        ends = np.minimum(starts + length, len(self.first)) - 1
        return self.last[ends] - self.first[starts] + 1

    @property
    def widest(self) -> int:
        """Pieces of a column at most."""
        return int((self.last - self.first).max()) + 1

    @property
    def shared(self) -> int:
        """Pieces that a column and its next one share at most."""
        return int((self.last[:-1] - self.first[1:] + 1).max(initial=0))


def choose_route(columns: Columns, reach: Reach, grid: PieceGrid, memory_bytes: int) -> Route:
    """The route with the fewest decodes; among equals the one nearest to the numbering of the tiles."""
    y = _Axis(columns.ys // grid.piece[1], (columns.ys + columns.height - 1) // grid.piece[1])
    x = _Axis(columns.xs // grid.piece[2], (columns.xs + columns.width - 1) // grid.piece[2])
    thickness = grid.thickness(y.widest * x.widest, memory_bytes)
    usable = int(memory_bytes * USABLE) // (thickness * grid.piece[1] * grid.piece[2] * grid.pixel_bytes)
    routes = [
        _weigh(y, x, layers, usable, rows, across)
        for layers in (_layers(columns, reach, grid, thickness, blocks) for blocks in _steps(columns, grid))
        for rows, across in product(_sizes(len(columns.ys)), _sizes(len(columns.xs)))
    ]
    return min(routes, key=lambda route: (round(route.decodes), -route.rows, -route.across, route.blocks))


def _weigh(y: _Axis, x: _Axis, layers: _Layers, usable: int, rows: int, across: int) -> Route:
    """A route with its costs in pieces; ``usable`` is the memory in pieces."""
    field = int(y.fields(rows).max() * x.fields(across).max())
    tile = y.widest * x.widest
    beside = x.shared * y.widest if across > 1 else 0
    below = y.shared * (int(x.fields(across).max()) + x.widest) if rows > 1 else 0
    if beside or below:
        inside = min(field, tile + beside + below) * layers.of_step
    else:  # no column needs what another one decodes: down a column, layers go one by one
        inside = tile * min(layers.of_step, layers.at_once)
    carry = 0 if rows == across == 1 else layers.carried * field
    once = int(y.fields(rows).sum() * x.fields(across).sum())
    anew = int(y.fields(1).sum() * x.fields(1).sum())
    if inside > usable:
        kept = usable / inside
        decodes = layers.in_steps * (once * kept + anew * (1 - kept))
    else:
        kept = min(1.0, (usable - inside) / carry) if carry else 1.0
        decodes = once * (layers.total * kept + layers.in_steps * (1 - kept))
    return Route(rows, across, layers.blocks, layers.thickness, inside + carry, decodes)


@dataclass(frozen=True)
class _Layers:
    """Layers of pieces along z, for steps of some blocks.

    Parameters
    ----------
    blocks : int
        Plane blocks of a step.
    thickness : int
        Planes of a layer.
    total, in_steps : int
        Layers of all steps, each once; and of each step, added up.
    of_step, carried : int
        Layers of one step, and shared by two steps that follow each other, at most.
    at_once : int
        Layers that two readers going down one column need at a time.
    """

    blocks: int
    thickness: int
    total: int
    in_steps: int
    of_step: int
    carried: int
    at_once: int


def _layers(columns: Columns, reach: Reach, grid: PieceGrid, thickness: int, blocks: int) -> _Layers:
    starts = range(0, reach.tile_planes, blocks * PLANES_PER_BLOCK)
    spans = [
        reach.planes(start, min(start + blocks * PLANES_PER_BLOCK, reach.tile_planes)) for start in starts
    ]
    low, high = (_layer(grid, thickness, np.array(planes)) for planes in zip(*spans, strict=True))
    at_once = 2 if reach.fixed else -(-(reach.shifts[-1] - reach.shifts[0]) // thickness) + 2
    return _Layers(
        blocks,
        thickness,
        total=int(high.max() - low.min()) + 1,
        in_steps=int((high - low + 1).sum()),
        of_step=int((high - low).max()) + 1,
        carried=int((high[:-1] - low[1:] + 1).max(initial=0)),
        at_once=at_once,
    )


def _layer(grid: PieceGrid, thickness: int, planes: Ints) -> Ints:
    """The layer of pieces that each plane lies in."""
    chunk, inside = np.divmod(planes, grid.piece[0])
    layer: Ints = chunk * -(-grid.piece[0] // thickness) + inside // thickness
    return layer


def _sizes(count: int) -> list[int]:
    """Lengths of fields that cut a row of columns evenly; the whole first."""
    return sorted({-(-count // parts) for parts in range(1, count + 1)}, reverse=True)


def _steps(columns: Columns, grid: PieceGrid) -> list[int]:
    """Blocks of a step: one, or as many as end with a layer of chunks."""
    whole = math.lcm(grid.piece[0], PLANES_PER_BLOCK) // PLANES_PER_BLOCK
    return sorted({1, min(whole, columns.blocks)} if whole <= LONGEST_STEP else {1})
