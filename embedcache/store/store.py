"""Turns a folder into an ``EmbeddingStore``: what was encoded, proven; where the two stages meet.

A store is a Zarr v3 group with a journal beside its arrays. Only what the journal records is there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from embedcache.errors import CorruptionError, InputError, MismatchError, MissingTilesError, NoTileError
from embedcache.files import exclusive_lock, read_error, remove_litter, sha256_hex, write_file
from embedcache.geometry import Tile
from embedcache.sam.decoder import Decoder
from embedcache.store import layout
from embedcache.store.creation import (
    SHARD_TILES,
    SHARD_TILES_LIMIT,
    check_attributes,
    no_store,
    refuse_foreign,
    write_new,
)
from embedcache.store.journal import MAIN, JournalWriter, mend
from embedcache.store.predictor import StorePredictor
from embedcache.store.reader import EmbeddingReader
from embedcache.store.record import TileRecord
from embedcache.store.spec import EncodeSpec
from embedcache.store.state import COMMITTED, FAILED, SKIPPED, StoreState
from embedcache.store.status import StoreStatus
from embedcache.store.writer import StoreWriter
from embedcache.volume.volume import ImageRecord, Volume


class EmbeddingStore:
    """The embeddings of one volume under one recipe; made by :meth:`create` and :meth:`open`.

    The object shows a snapshot of the journal; :meth:`refresh` takes a new one, and a writer of the same object
    keeps it up to date.

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
    table : ndarray of int64, shape (N, 5)
        Plane, y0, x0, height, width of each tile number; −1 where a number has no tile. Read-only.
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path = path
        self._attributes = dict(attributes)
        self.spec = EncodeSpec.from_dict(attributes["spec"])
        self.fingerprint = self.spec.fingerprint
        self.embedding_space = self.spec.embedding_space
        self.provenance: dict[str, Any] = dict(attributes["provenance"])
        self.shard_tiles = int(attributes["shard_tiles"])
        self.state = self.read_state()
        self.table = layout.read_tiles(path, self.state.n_tiles)
        self._reader = EmbeddingReader(self)

    # ---- making and opening

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        spec: EncodeSpec,
        table: npt.NDArray[np.int64],
        decoder_state: Mapping[str, Tensor],
        provenance: Mapping[str, Any],
        images: Sequence[ImageRecord] = (),
        shard_tiles: int = SHARD_TILES,
    ) -> EmbeddingStore:
        """Make a store, or open the one that is there when it is of the same fingerprint.

        Parameters
        ----------
        path : Path or str
            The folder; missing, empty, a store, or one whose making was interrupted.
        spec : EncodeSpec
            What decides the embeddings' bytes.
        table : ndarray of int64, shape (N, 5)
            The grid's table.
        decoder_state : dict of str to Tensor
            ``prompt_encoder.*`` and ``mask_decoder.*`` of the checkpoint.
        provenance : dict
            JSON values; outside the fingerprint.
        images : sequence of ImageRecord
            The image table of a collection.
        shard_tiles : int
            Embeddings of one shard file, of a new store.

        Raises
        ------
        MismatchError
            When a store of another fingerprint is there; with the fields that differ. It is not touched.
        InputError
            When the folder holds something else.
        LockedError
            When another process is making it.
        StorageError
            When the disk refuses.
        """
        root = Path(path).absolute()
        try:
            there = (root / layout.GROUP_FILE).exists()
        except OSError as error:
            raise read_error(error, root) from error
        if not there:
            if not 1 <= shard_tiles <= SHARD_TILES_LIMIT:
                raise InputError(f"shard tiles {shard_tiles}: expected 1 to {SHARD_TILES_LIMIT}.")
            refuse_foreign(root)
            with exclusive_lock(root / layout.JOURNAL / layout.LOCK, guarded=root):
                if not (root / layout.GROUP_FILE).exists():
                    write_new(root, spec, table, decoder_state, provenance, images, shard_tiles)
        store = cls.open(root)
        if store.fingerprint != spec.fingerprint:
            raise MismatchError(
                f"{root} holds embeddings of another volume, model or recipe.",
                differences=store.spec.differences(spec),
                hint="Choose another --store, or use the options that this one was made with (--like STORE).",
            )
        return store

    @classmethod
    def open(cls, path: Path | str) -> EmbeddingStore:
        """Open a store.

        Raises
        ------
        InputError
            When the folder is no store, or its making was interrupted.
        MismatchError
            When a newer version wrote it.
        CorruptionError
            When its journal, tile table or metadata are broken.
        StorageError
            When it is there but cannot be read.
        """
        root = Path(path).absolute()
        try:
            metadata = layout.read_json(root / layout.GROUP_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise no_store(root) from error
        except InputError as error:
            if (root / layout.JOURNAL / layout.LOCK).exists():  # a store of ours, then
                raise CorruptionError(error.message) from error
            raise
        group = metadata.get("attributes")
        attributes = group.get(layout.ATTRIBUTE) if isinstance(group, dict) else None
        if not isinstance(attributes, dict):
            raise InputError(f"{root} is a Zarr group, but no store of embeddings.")
        check_attributes(root, attributes)
        return cls(root, attributes)

    def __reduce__(self) -> tuple[Callable[[Path], EmbeddingStore], tuple[Path]]:
        return EmbeddingStore.open, (self.path,)

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, {int(self.committed.sum())} of {len(self)} tile numbers)"

    def refresh(self) -> None:
        """Take a new snapshot of the journal."""
        state = self.read_state()
        if state.n_tiles != self.state.n_tiles:
            self.table = layout.read_tiles(self.path, state.n_tiles)
        self.state = state

    def read_state(self) -> StoreState:
        """Replay the journal as it is on disk now; the snapshot is not changed."""
        return StoreState.read(self.path / layout.JOURNAL, self.shard_tiles)

    def reload_table(self) -> None:
        """Read the tile table again, to the length that the snapshot has."""
        self.table = layout.read_tiles(self.path, self.state.n_tiles)

    # ---- tiles and images

    def __len__(self) -> int:
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
        inside = f"its numbers end at {len(self) - 1}" if number >= len(self) else "numbering leaves gaps"
        raise NoTileError(
            f"{self.path}: number {number} has no tile ({'numbers begin at 0' if number < 0 else inside}).",
            hint="np.flatnonzero(store.committed) lists the numbers that can be read.",
        )

    def describe(self, number: int) -> str:
        """A tile in words: its number and place."""
        plane, y0, x0, height, width = (int(value) for value in self.table[number])
        if plane < 0:
            return f"tile {number} (a number without a tile)"
        rows, columns = f"rows {y0}:{y0 + height}", f"columns {x0}:{x0 + width}"
        return f"tile {number} ({self.plane_name(plane)}, {rows}, {columns})"

    @property
    def uniform(self) -> bool:
        """Whether all planes are of one size (an array), rather than a collection of images."""
        return not self.state.images

    @property
    def images(self) -> tuple[ImageRecord, ...]:
        """The image table of a collection; empty for an array."""
        return tuple(self.state.images)

    def plane_name(self, plane: int) -> str:
        """Name of a plane: the image's, or "z=12"."""
        return f"z={plane}" if self.uniform else self.state.images[plane].name

    def plane_size(self, plane: int) -> tuple[int, int]:
        """Height and width of a plane in volume px."""
        if not self.uniform:
            image = self.state.images[plane]
            return image.height, image.width
        return self._uniform_size

    @cached_property
    def _uniform_size(self) -> tuple[int, int]:
        """The grid covers every plane to its edges, so that the tiles say how large a plane is."""
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
    def failed(self) -> dict[int, str]:
        """Tiles that could not be encoded, with the reason; they are missing as well."""
        return dict(self.state.failed)

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
    def n_shards(self) -> int:
        """Number of shards that the tile numbers fill."""
        return -(-len(self) // self.shard_tiles)

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
            bytes=int(self.state.shard_bytes.sum()),
            complete=bool(wanted.any()) and missing == 0,
        )

    # ---- reading

    def __getitem__(self, number: int) -> Tensor:
        """One embedding, float32 (256, 64, 64), checked."""
        return self._reader.read([operator.index(number)])[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The embeddings that are there, by number: those of ``np.flatnonzero(store.committed)``."""
        return (self[int(number)] for number in np.flatnonzero(self.committed))

    def reader(self) -> EmbeddingReader:
        """A reader of batches with files of its own."""
        return EmbeddingReader(self)

    def decoder_state(self) -> dict[str, Tensor]:
        """The checkpoint's own ``prompt_encoder.*`` and ``mask_decoder.*``.

        Raises
        ------
        CorruptionError
            When the file is missing or not the one that was written at creation.
        """
        path = self.path / layout.DECODER
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptionError(f"{path} is missing.") from error
        except OSError as error:
            raise read_error(error, path) from error
        if sha256_hex(data) != self._attributes["decoder_sha256"]:
            raise CorruptionError(f"{path} is not the file that was written when the store was made.")
        try:
            return dict(safetensors.torch.load(data))
        except SafetensorError as error:
            raise CorruptionError(f"{path} cannot be read: {error}.") from error

    def decoder(self) -> Decoder:
        """The checkpoint's own prompt encoder and mask decoder."""
        return Decoder.from_state(self.decoder_state())

    def predictor(self, number: int, volume: Volume | None = None) -> StorePredictor:
        """An object like SAM's predictor with this tile as its image.

        Parameters
        ----------
        number : int
            Tile number.
        volume : Volume, optional
            Only to show the tile's pixels; prediction needs none.
        """
        return StorePredictor(
            self.decoder(), self[number], self.tile(number), volume=volume, preprocess=self.spec.preprocess
        )

    # ---- writing

    @contextmanager
    def writer(self) -> Iterator[StoreWriter]:
        """Hold the store for writing; what a killed writer left is cleaned up and settled first.

        Raises
        ------
        LockedError
            When another process is writing.
        StorageError
            When the store cannot be written.
        """
        folder = self.path / layout.JOURNAL
        with exclusive_lock(folder / layout.LOCK, guarded=self.path):
            self._clean()
            mend(folder / MAIN)
            self.refresh()
            writer = StoreWriter(self, JournalWriter(folder / MAIN, self.state.sequence + 1))
            writer.settle()
            yield writer

    def _clean(self) -> None:
        for name in ("", layout.EMBEDDINGS, layout.JOURNAL):
            remove_litter(self.path / name, deep=False)
        remove_litter(self.path / layout.TILES)

    def write_group(self) -> None:
        """Copy the journal's numerics and lengths into the group's metadata, if they differ; for the writer."""
        self._attributes["numerics"] = self.state.numerics
        metadata = layout.root_metadata(self._attributes, len(self), self.shard_tiles)
        path = self.path / layout.GROUP_FILE
        if layout.read_json(path) != metadata:
            write_file(path, layout.json_bytes(metadata))
