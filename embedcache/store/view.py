"""Turns a snapshot of the journal and the tile table into answers: which tiles there are, where, in what state.

Nothing here reads an embedding or changes a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import MissingTilesError, NoTileError
from embedcache.geometry import Tile
from embedcache.store.journal.record import DIGEST_BYTES, ShardRecord, TileRecord
from embedcache.store.journal.state import COMMITTED, FAILED, SKIPPED, StoreState
from embedcache.store.shards.scales import ROW_BYTES
from embedcache.store.shards.shard import CRC_BYTES, Form, form_of
from embedcache.store.spec import EncodeSpec
from embedcache.store.status import StoreStatus
from embedcache.store.views import Numbering
from embedcache.volume.volume import ImageRecord

NUMBERS_SHOWN = 4
"""A message names at most so many numbers that have a tile."""


class StoreView:
    """What a store's snapshot says; the part of ``EmbeddingStore`` that only looks things up.

    Attributes
    ----------
    path : Path
        Absolute path of the folder.
    spec : EncodeSpec
        What decides the embeddings' bytes.
    provenance : dict
        Source, versions, device, licence, recipe; as given at creation.
    shard_tiles : int
        Embeddings of one shard file.
    state : StoreState
        The journal, replayed.
    table : ndarray of int64, shape (N, 5), or (N, 6) of a store that has views
        Plane, y0, x0, height, width (and view) of each tile number; −1 where a number has no tile. Read-only.
    numbering : Numbering
        Which of them is which view of which.
    """

    path: Path
    spec: EncodeSpec
    provenance: dict[str, Any]
    shard_tiles: int
    state: StoreState
    table: npt.NDArray[np.int64]
    numbering: Numbering

    @property
    def fingerprint(self) -> str:
        """Digest of the spec: what decides the embeddings' bytes."""
        return self.spec.fingerprint

    @property
    def embedding_space(self) -> str:
        """Digest of what gives an embedding its meaning; equal: may be used together."""
        return self.spec.embedding_space

    @property
    def form(self) -> Form:
        """The form in which the embeddings stand in the shards."""
        return form_of(self.spec.store_dtype)

    # ---- tiles and images

    def __len__(self) -> int:
        """How many numbers there are; not each has a tile, and not each tile is encoded (:attr:`committed`)."""
        return self.state.n_tiles

    def tile(self, number: int) -> Tile:
        """The tile of a number.

        Raises
        ------
        NoTileError
            When the number is out of range or has no tile.
        """
        self.require_tile(number)
        return Tile(*(int(value) for value in self.table[number]))

    def require_tile(self, number: int) -> None:
        """Refuse a number that has no tile: :class:`NoTileError`."""
        if 0 <= number < len(self) and self.table[number, 0] >= 0:
            return
        having = self.numbering.having
        inside = f"its numbers end at {len(self) - 1}" if number >= len(self) else "numbering leaves gaps"
        more = ", …" if len(having) > NUMBERS_SHOWN else ""
        raise NoTileError(
            f"{self.path}: number {number} has no tile ({'numbers begin at 0' if number < 0 else inside}); "
            f"{len(having)} of {len(self)} have one: {', '.join(map(str, having[:NUMBERS_SHOWN]))}{more}.",
            hint="`for number in np.flatnonzero(store.committed)` goes over those that can be read, "
            "`for embedding in store` over their embeddings.",
        )

    def describe(self, number: int) -> str:
        """A tile in words: its number and place."""
        plane, y0, x0, height, width = (int(value) for value in self.table[number, :5])
        if plane < 0:
            return f"tile {number} (a number without a tile)"
        rows, columns = f"rows {y0}:{y0 + height}", f"columns {x0}:{x0 + width}"
        view = int(self.view_of[number])
        seen = f", view {view}" if view else ""
        return f"tile {number} ({self.plane_name(plane)}, {rows}, {columns}{seen})"

    # ---- views

    @property
    def views(self) -> tuple[int, ...]:
        """The views in which its tiles may be stored; of these 0, the tiles as they lie, is always one."""
        return self.numbering.views

    @property
    def base(self) -> npt.NDArray[np.bool_]:
        """Numbers of base tiles, those of view 0, (N,): one for each place. Read-only."""
        return self.numbering.base

    @property
    def view_of(self) -> npt.NDArray[np.int64]:
        """The view of each tile, (N,). Read-only."""
        return self.numbering.view_of

    def base_of(self, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Numbers of the base tiles at the places of these tiles, in their order."""
        found: npt.NDArray[np.int64] = self.numbering.base_of[np.asarray(numbers, dtype=np.int64)]
        return found

    def views_of(self, base: int) -> dict[int, int]:
        """The committed tiles at the place of a base tile: view → number, by view.

        Raises
        ------
        NoTileError
            When the number is out of range or has no tile.
        """
        self.require_tile(base)
        at_place = self.numbering.at_place_of(base)
        there = at_place[self.state.flags[at_place] == COMMITTED]
        views = self.numbering.view_of[there]
        return dict(sorted(zip(views.tolist(), there.tolist(), strict=True)))

    @property
    def uniform(self) -> bool:
        """Whether all planes are of one size (an array), rather than a collection of images."""
        return not self.state.images

    @property
    def images(self) -> tuple[ImageRecord, ...]:
        """The image table of a collection; empty for an array."""
        return tuple(self.state.images)

    def plane_name(self, plane: int) -> str:
        """Name of a plane: the image's, "z=12", or "z=3+17+40" of a random composite."""
        return self.spec.plane_name(plane) if self.uniform else self.state.images[plane].name

    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width of a plane in volume px."""
        if not self.uniform:
            image = self.state.images[plane]
            return image.height, image.width
        # the grid covers every plane to its edges, so that the tiles say how large a plane is
        bottom, right = (int((self.table[:, at] + self.table[:, at + 2]).max(initial=0)) for at in (1, 2))
        return bottom, right

    # ---- what is there

    @property
    def wanted(self) -> npt.NDArray[np.bool_]:
        """Tiles that some selection asked for, (N,)."""
        return self.state.wanted.copy()

    @property
    def committed(self) -> npt.NDArray[np.bool_]:
        """Tiles whose embeddings are there, (N,)."""
        return np.asarray(self.state.flags == COMMITTED)

    @property
    def skipped(self) -> npt.NDArray[np.bool_]:
        """Tiles that were left out on purpose, (N,)."""
        return np.asarray(self.state.flags == SKIPPED)

    @property
    def skip_reasons(self) -> dict[int, str]:
        """Tiles that were left out on purpose, with the reason."""
        return self.state.skipped

    @property
    def failed(self) -> dict[int, str]:
        """Tiles that could not be encoded, with the reason; they are missing as well."""
        return self.state.failed

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Tiles that are wanted and neither there nor skipped, (N,)."""
        flags = self.state.flags
        return np.asarray(self.state.wanted & (flags != COMMITTED) & (flags != SKIPPED))

    @property
    def numerics(self) -> dict[str, Any] | None:
        """What may change bits but not meaning, as decided at the first commit."""
        return dict(self.state.numerics[0]) if self.state.numerics else None

    @property
    def certificates(self) -> tuple[dict[str, Any], ...]:
        """What was measured of the embeddings' fidelity, oldest first."""
        return tuple(dict(values) for values in self.state.certificates)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The newest of :attr:`certificates`."""
        return self.certificates[-1] if self.state.certificates else None

    @property
    def n_shards(self) -> int:
        """Number of shards that the tile numbers fill."""
        return -(-len(self) // self.shard_tiles)

    def shard_range(self, part: int, parts: int) -> range:
        """The shards of one of several parts, counted from 0; together they are all, each once."""
        return range(part * self.n_shards // parts, (part + 1) * self.n_shards // parts)

    def shard_record(self, shard: int) -> ShardRecord | None:
        """All that the journal says of a shard; ``None`` when it says nothing."""
        return self.state.shard_record(shard)

    def record(self, number: int) -> TileRecord:
        """What the journal says of a committed tile.

        Raises
        ------
        MissingTilesError
            When it is not committed.
        """
        shard, slot = divmod(number, self.shard_tiles)
        record = self.state.shard_record(shard) if 0 <= number < len(self) else None
        if record is None or slot not in record.slots:
            raise MissingTilesError(f"{self.path} has no record of tile {number}.")
        at = int(np.searchsorted(record.slots, slot))
        return TileRecord(
            crc32c=int(record.crc[at]),
            input_digest=record.digest_of(at),
            minimum=float(record.minimum[at]),
            maximum=float(record.maximum[at]),
        )

    def recorded_inputs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Numbers (n,) of the committed tiles, ascending, and the SHA-256 (n, 32) of the pixels of each."""
        state = self.state
        numbers = np.flatnonzero(state.flags == COMMITTED)
        digests = np.zeros((len(numbers), DIGEST_BYTES), np.uint8)
        if state.snapshot is not None:
            inside = numbers[: np.searchsorted(numbers, state.snapshot.tiles)]
            digests[: len(inside)] = state.snapshot.column("inputs")[inside]
        for shard in state.places:
            record = state.shard_record(shard)
            if record is not None and len(record.slots):
                at = np.searchsorted(numbers, shard * self.shard_tiles + record.slots)
                digests[at] = np.frombuffer(record.input_bytes, np.uint8).reshape(-1, DIGEST_BYTES)
        return numbers, digests

    def status(self) -> StoreStatus:
        """Counts and sizes, for people and for ``status``."""
        flags, wanted = self.state.flags, self.state.wanted
        missing = int(self.missing.sum())
        return StoreStatus(
            store=str(self.path),
            fingerprint=self.fingerprint,
            embedding_space=self.embedding_space,
            spec=self.spec.to_dict(),
            tiles_total=int((self.table[:, 0] >= 0).sum()),
            tiles_wanted=int(wanted.sum()),
            tiles_committed=int((flags == COMMITTED).sum()),
            tiles_skipped=int((flags == SKIPPED).sum()),
            tiles_failed=int((flags == FAILED).sum()),
            tiles_missing=missing,
            views=list(self.views),
            bytes=int(self.state.shard_bytes.sum()) + self._scales_bytes(),
            complete=bool(wanted.any()) and missing == 0,
        )

    def _scales_bytes(self) -> int:
        if self.form.dtype != "int8":
            return 0
        return int((self.state.shard_bytes > 0).sum()) * (self.shard_tiles * ROW_BYTES + CRC_BYTES)
