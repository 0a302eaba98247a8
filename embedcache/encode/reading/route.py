"""Turns the ground into the ``Route`` through a volume on which least is decoded twice.

A route goes field by field (a field is a rectangle of tile columns); through a field in steps along z (a step is
some blocks of planes); through a step column by column, row by row; down a column block by block. What a later
part needs again must be kept meanwhile: the overlap with the next row, the chunk that two steps share. Every route
has its price in memory and in repeated decoding, both known beforehand; the one with least decoding is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from embedcache.encode.reading.columns import Columns, Ints
from embedcache.encode.reading.ground import Ground, Layers
from embedcache.geometry import PLANES_PER_BLOCK

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
    kept : int
        Decoded pieces that must be kept for nothing to be decoded twice inside a field.
    decodes : float
        Expected decodes of pieces.
    """

    rows: int
    across: int
    blocks: int
    kept: int
    decodes: float

    def part(self, columns: Columns, numbers: Ints) -> Ints:
        """The field and step that tiles lie in, as one ascending number."""
        block, column = np.divmod(numbers // PLANES_PER_BLOCK, columns.count)
        iy, ix = np.divmod(column, len(columns.xs))
        field = iy // self.rows * len(columns.xs) + ix // self.across
        number: Ints = field * columns.blocks + block // self.blocks
        return number

    def order(self, columns: Columns, numbers: Ints) -> Ints:
        """Sort keys of tiles by their numbers."""
        block, column = np.divmod(numbers // PLANES_PER_BLOCK, columns.count)
        key: Ints = (self.part(columns, numbers) * columns.count + column) * self.blocks + block % self.blocks
        return key


def choose_route(ground: Ground, memory_bytes: int) -> tuple[Ground, Route]:
    """The route with the fewest decodes, and the parts in which chunks are kept on it.

    Among equals it is the one nearest to the numbering of the tiles. Parts are smaller than chunks only where the
    memory is too little for whole ones.
    """
    best = _best_on(ground.thin(memory_bytes), memory_bytes)
    if best[1].decodes > fewest_decodes(ground):
        others = [_best_on(cut.thin(memory_bytes), memory_bytes) for cut in ground.cuts()]
        best = min([best, *others], key=lambda found: found[1].decodes)
    return best


def fewest_decodes(ground: Ground) -> int:
    """Decodes when each chunk that any tile of the grid reads is decoded once."""
    whole = ground.whole()
    down, across = (int(axis.fields(len(axis)).sum()) for axis in (whole.y, whole.x))
    return down * across * whole.layers(1).total


def _best_on(ground: Ground, memory_bytes: int) -> tuple[Ground, Route]:
    usable = int(memory_bytes * USABLE) // ground.grid.piece_bytes
    routes = _routes(ground, usable, _steps(ground))
    return ground, min(
        routes, key=lambda route: (round(route.decodes), -route.rows, -route.across, route.blocks)
    )


def choose_tasks(ground: Ground, memory_bytes: int, most_tiles: int) -> Route:
    """The route whose parts (a field's step) are best as tasks of their own: nothing is kept from one to another.

    Parameters
    ----------
    ground : Ground
        What is read.
    memory_bytes : int
        Decoded bytes that one worker keeps.
    most_tiles : int
        Tiles of a part, unless a step of one column has more.
    """
    usable = int(memory_bytes * USABLE) // ground.grid.piece_bytes
    step = max(_steps(ground))
    lengths = [step * times for times in (1, 2, 4, 8) if step * times <= max(step, LONGEST_STEP)]
    routes = [
        _alone(route, ground)
        for route in _routes(ground, usable, lengths)
        if route.rows * route.across * route.blocks * PLANES_PER_BLOCK <= most_tiles
        or (route.rows == route.across == 1 and route.blocks == step)
    ]
    return min(routes, key=lambda route: (round(route.decodes), route.rows * route.across * route.blocks))


def least_memory(ground: Ground) -> int:
    """Bytes with which some route decodes everything once."""
    ground = ground.whole()
    routes = list(_routes(ground, 1 << 62, _steps(ground)))
    fewest = min(route.decodes for route in routes)
    kept = min(route.kept for route in routes if route.decodes <= fewest)
    return math.ceil(max(kept / USABLE, 2 * ground.y.widest * ground.x.widest) * ground.grid.piece_bytes)


def _alone(route: Route, ground: Ground) -> Route:
    """A route whose parts are read by different workers."""
    layers = ground.layers(route.blocks)
    once = int(ground.y.fields(route.rows).sum() * ground.x.fields(route.across).sum())
    return replace(route, decodes=max(route.decodes, once * layers.in_steps))


def _routes(ground: Ground, usable: int, steps: Iterable[int]) -> Iterator[Route]:
    """All routes worth looking at; ``usable`` is the memory in pieces."""
    for layers in map(ground.layers, steps):
        for rows, across in product(_sizes(len(ground.y)), _sizes(len(ground.x))):
            yield _weigh(ground, layers, usable, rows, across)


def _weigh(ground: Ground, layers: Layers, usable: int, rows: int, across: int) -> Route:
    y, x = ground.y, ground.x
    downs, acrosses = y.fields(rows), x.fields(across)
    field, tile = int(downs.max() * acrosses.max()), y.widest * x.widest
    beside = x.shared * y.widest if across > 1 else 0
    below = y.shared * (int(acrosses.max()) + x.widest) if rows > 1 else 0
    if beside or below:
        inside = min(field, tile + beside + below) * layers.of_step
    elif ground.columns.views > 1:  # the views of a block are read one after the other
        inside = tile * ground.layers(1).of_step
    else:  # no column needs what another one decodes: down a column, layers go one by one
        inside = tile * min(layers.of_step, layers.at_once)
    carry = 0 if rows == across == 1 else layers.carried * field
    once = int(downs.sum() * acrosses.sum())
    if inside > usable:
        kept, anew = usable / inside, int(y.fields(1).sum() * x.fields(1).sum()) * ground.columns.views
        decodes = layers.in_steps * (once * kept + anew * (1 - kept))
    else:
        kept = min(1.0, (usable - inside) / carry) if carry else 1.0
        decodes = once * (layers.total * kept + layers.in_steps * (1 - kept))
    return Route(rows, across, layers.blocks, inside + carry, decodes)


def _sizes(count: int) -> list[int]:
    """Lengths of fields that cut a row of columns evenly."""
    return sorted({-(-count // parts) for parts in range(1, count + 1)}, reverse=True)


def _steps(ground: Ground) -> list[int]:
    """Blocks of a step: one, or as many as end with a layer of chunks."""
    whole = math.lcm(ground.grid.chunk[0], PLANES_PER_BLOCK) // PLANES_PER_BLOCK
    blocks = -(-ground.reach.tile_planes // PLANES_PER_BLOCK)
    return sorted({1, min(whole, blocks)} if whole <= LONGEST_STEP else {1})
