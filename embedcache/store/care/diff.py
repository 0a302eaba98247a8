"""Turns two stores into what tells them apart: fields of the recipe, and tiles by place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import EXIT_DONE, EXIT_MISMATCH
from embedcache.store.spec import leaf_differences
from embedcache.store.store import EmbeddingStore

NAMED_TILES = 1000
"""Tiles that each list names at most."""

Place = tuple[object, int, int, int, int, int]


@dataclass(frozen=True)
class StoreDiff:
    """What tells two stores, A and B, apart.

    Parameters
    ----------
    fields : dict of str to (object, object)
        Dotted names of what decides the embeddings and differs: in A, in B.
    equal : int
        Tiles that both hold, of equal pixels and equal bytes (and, for int8, scales).
    only_a, only_b : tuple of int
        Numbers (of A, of B) of tiles that only one of them holds.
    different : tuple of int
        Numbers (of A) of tiles that both hold and that differ in pixels or bytes.
    """

    fields: dict[str, tuple[object, object]]
    equal: int
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    different: tuple[int, ...]

    @property
    def same(self) -> bool:
        """Whether nothing tells them apart."""
        return not (self.fields or self.only_a or self.only_b or self.different)

    @property
    def exit_code(self) -> int:
        """0, or 3 when they differ."""
        return EXIT_DONE if self.same else EXIT_MISMATCH

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "same": self.same,
            "fields": {name: list(pair) for name, pair in self.fields.items()},
            "tiles_equal": self.equal,
            "tiles_only_a": len(self.only_a),
            "tiles_only_b": len(self.only_b),
            "tiles_different": len(self.different),
            "only_a": list(self.only_a[:NAMED_TILES]),
            "only_b": list(self.only_b[:NAMED_TILES]),
            "different": list(self.different[:NAMED_TILES]),
        }


def diff(a: EmbeddingStore, b: EmbeddingStore) -> StoreDiff:
    """Compare what two stores say of themselves; no embedding is read (``verify`` says whether they are there).

    Tiles are matched by number where the grids are the same, else by place: plane (or image name), row, column,
    height and width, and view.
    """
    fields = leaf_differences(a.spec.to_dict(), b.spec.to_dict())
    fields |= leaf_differences({"numerics": a.numerics or {}}, {"numerics": b.numerics or {}})
    theirs = _partners(a, b)
    tiles_a, tiles_b = np.flatnonzero(a.committed), np.flatnonzero(b.committed)
    partners = theirs[tiles_a]
    both = (partners >= 0) & b.committed[partners]
    marks_a, marks_b = _marks(a), _marks(b)
    equal = np.array(
        [marks_a[int(x)] == marks_b[int(y)] for x, y in zip(tiles_a[both], partners[both], strict=True)],
        dtype=bool,
    )
    return StoreDiff(
        fields=fields,
        equal=int(equal.sum()),
        only_a=tuple(tiles_a[~both].tolist()),
        only_b=tuple(np.setdiff1d(tiles_b, partners[both]).tolist()),
        different=tuple(tiles_a[both][~equal].tolist()),
    )


def _partners(a: EmbeddingStore, b: EmbeddingStore) -> npt.NDArray[np.int64]:
    """Of each number of A the number in B of the same place, −1 where there is none."""
    if a.uniform and b.uniform and np.array_equal(a.table, b.table):
        return np.arange(len(a), dtype=np.int64)
    places = {_place(b, number): number for number in np.flatnonzero(b.table[:, 0] >= 0).tolist()}
    partners = np.full(len(a), -1, dtype=np.int64)
    for number in np.flatnonzero(a.table[:, 0] >= 0).tolist():
        partners[number] = places.get(_place(a, number), -1)
    return partners


def _place(store: EmbeddingStore, number: int) -> Place:
    plane, y0, x0, height, width = (int(value) for value in store.table[number, :5])
    view = int(store.view_of[number])
    return (plane if store.uniform else store.plane_name(plane), y0, x0, height, width, view)


def _marks(store: EmbeddingStore) -> dict[int, tuple[object, ...]]:
    """Of each committed tile the digest of its pixels and the checksums of what is stored."""
    marks: dict[int, tuple[object, ...]] = {}
    for shard in np.unique(np.flatnonzero(store.committed) // store.shard_tiles).tolist():
        record = store.state.shard_record(shard)
        assert record is not None  # its tiles are committed
        scales = (
            record.scale_crcs if record.scale_crcs is not None else np.zeros(len(record.slots), np.uint32)
        )
        for at, slot in enumerate(record.slots.tolist()):
            marks[shard * store.shard_tiles + slot] = (
                record.digest_of(at),
                int(record.crc[at]),
                int(scales[at]),
            )
    return marks
