"""Turns a folder into an ``EmbeddingStore``: what was encoded, proven; where the two stages meet.

A store is a Zarr v3 group with a journal beside its arrays. Only what the journal records is there.
"""

from __future__ import annotations

import errno
import operator
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from embedcache.errors import CorruptionError, InputError, MismatchError, StorageError, command
from embedcache.files import mutex, read_error, require_free, require_no_links, write_file
from embedcache.remote.address import is_remote
from embedcache.sam.decoder import Decoder
from embedcache.store import layout
from embedcache.store.creation import (
    NUMERICS,
    SHARD_TILES,
    SHARD_TILES_LIMIT,
    agreed_attributes,
    read_attributes,
    refuse_foreign,
    write_new,
)
from embedcache.store.decoder_file import read_decoder_state
from embedcache.store.journal.lines import CREATED, MAIN
from embedcache.store.journal.replay import append, catch_up, read_state
from embedcache.store.journal.state import StoreState
from embedcache.store.predictor import StorePredictor
from embedcache.store.reader import EmbeddingReader
from embedcache.store.reading.address import refuse_mirror
from embedcache.store.session import make_durable, writing
from embedcache.store.shards.shard import ShardFile
from embedcache.store.spec import EncodeSpec
from embedcache.store.view import StoreView
from embedcache.store.views import Numbering, Segment
from embedcache.store.writer import StoreWriter
from embedcache.volume.volume import ImageRecord, Volume

OPEN_TRIES = 3
"""How often a store that is changed while it is opened is looked at."""


class EmbeddingStore(StoreView):
    """The embeddings of one volume under one recipe; made by :meth:`create` and :meth:`open`.

    ``store[number]`` is an embedding, ``store.tile(number)`` where it lies. ``len(store)`` counts numbers, and not
    each has a tile or an embedding: ``np.flatnonzero(store.committed)`` are those that have one, and iteration
    gives their embeddings.

    The object shows a snapshot of the journal; :meth:`refresh` takes a new one, and a writer of the same object
    keeps it up to date.

    Attributes
    ----------
    attributes : dict
        The group's attributes, less the numerics; the others are those of ``StoreView``.
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], state: StoreState) -> None:
        self.path = path
        self.shard_tiles = state.shard_tiles
        self.state = state
        self._set_attributes(attributes)
        self.reload_table()
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
            When another process has been making it for half a minute.
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
            require_no_links(root, root / layout.JOURNAL)
            with mutex(root / layout.JOURNAL, guarded=root):
                if not (root / layout.GROUP_FILE).exists():
                    write_new(root, spec, table, decoder_state, provenance, images, shard_tiles)
        store = cls.open(root)
        if store.fingerprint != spec.fingerprint:
            raise MismatchError(
                f"{root} holds embeddings of another volume, model or recipe.",
                differences=store.spec.differences(spec),
                hint="Choose another --store, or use the options that this one was made with: "
                f"--like {shlex.quote(str(root))}",
            )
        return store

    @classmethod
    def open(cls, path: Path | str) -> EmbeddingStore:
        """Open a store; one that is somewhere else by its address, ``s3://…`` or ``https://…``, for reading.

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
        if is_remote(str(path)):
            from embedcache.store.reading.remote import open_remote  # which is a store itself

            return open_remote(str(path))
        root = Path(path).absolute()
        if cls is EmbeddingStore:
            refuse_mirror(root)
        tries = OPEN_TRIES
        while True:
            found = read_attributes(root)
            state = read_state(root, found["shard_tiles"])
            try:
                return cls(root, agreed_attributes(root, found, state), state)
            except CorruptionError:
                # a writer may have changed the source between our two looks; then a second look shows it
                tries -= 1
                if not tries or read_attributes(root) == found:
                    raise

    def __reduce__(self) -> tuple[Callable[[Path], EmbeddingStore], tuple[Path]]:
        return EmbeddingStore.open, (self.path,)

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, {int(self.committed.sum())} of {len(self)} tile numbers)"

    def refresh(self) -> None:
        """Take a new snapshot of the journal."""
        self._follow(self.read_state())

    def catch_up(self) -> None:
        """Take in what was appended since the snapshot; for a writer, who keeps others from compacting."""
        before = self.state.n_tiles, self.state.segments
        try:
            self.state.files[CREATED].reopen()
            catch_up(self.state)
        except FileNotFoundError:  # compacted since
            self.refresh()
        else:
            self._follow(self.state, before)

    def _follow(self, state: StoreState, before: tuple[int, tuple[Segment, ...]] | None = None) -> None:
        before = before or (self.state.n_tiles, self.state.segments)
        longer = (state.n_tiles, state.segments) != before
        self.state = state
        self.take_attributes()
        if longer:
            self.reload_table()

    def reload_table(self) -> None:
        """Read the tile table again, to the length that the snapshot has."""
        state = self.state
        self.table = layout.read_tiles(self.path, state.n_tiles, views=bool(state.segments))
        self.numbering = Numbering(self.path, self.table, state.segments, not state.images)

    def take_attributes(self) -> None:
        """Be what the snapshot says that the store is: a change of the source changes its spec."""
        if self.state.attributes not in (None, self.attributes):
            self._set_attributes(self.state.attributes)

    def _set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = {name: value for name, value in attributes.items() if name != NUMERICS}
        self.spec = EncodeSpec.from_dict(attributes["spec"])
        self.provenance = dict(attributes["provenance"])

    def read_state(self) -> StoreState:
        """Replay the journal as it is on disk now; the snapshot is not changed."""
        return read_state(self.path, self.shard_tiles)

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

    def open_shard(self, shard: int) -> ShardFile:
        """A shard's file, open for reading; CorruptionError when it is missing."""
        return ShardFile(self.path, shard, self.form, self.shard_tiles)

    @property
    def address(self) -> str:
        """What :meth:`open` opens it by: its path, or where it is when that is somewhere else."""
        return str(self.path)

    def repair_hint(self) -> str:
        """What to do about an embedding whose bytes are not those recorded."""
        return f"`{command('repair', self.path)}` encodes it anew. Other tiles still read."

    def decoder_state(self) -> dict[str, Tensor]:
        """The checkpoint's own ``prompt_encoder.*`` and ``mask_decoder.*``.

        Raises
        ------
        CorruptionError
            When the file is missing or not the one that was written at creation.
        """
        return read_decoder_state(self.path, str(self.attributes["decoder_sha256"]))

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
    def writer(self, shards: range | None = None) -> Iterator[StoreWriter]:
        """Hold the store for writing; what a killed writer left is cleaned up and settled first.

        Parameters
        ----------
        shards : range, optional
            Only these shards, so that writers of others may go on beside it; by default the whole store.

        Raises
        ------
        LockedError
            When another process is writing one of these shards.
        StorageError
            When the store cannot be written.
        """
        with writing(self, shards) as writer:
            yield writer

    def require_free(self, shards: range | None = None) -> None:
        """Refuse what :meth:`writer` would refuse now, without holding anything.

        Raises
        ------
        LockedError
            When another process is writing one of these shards, by default any.
        """
        require_no_links(self.path, self.path / layout.JOURNAL)
        require_free(self.path / layout.JOURNAL, shards, guarded=self.path)

    def make_durable(self) -> None:
        """Make durable all that the journal says, so that a power cut takes none of it; a writer does so itself.

        For whoever finds a store complete and relies on it: its last writer may have been killed before it came
        to the fsync. Of a store that this user may only read nothing is done.

        Raises
        ------
        StorageError
            When the disk refuses.
        """
        try:
            make_durable(self.path)
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    def add_certificate(self, certificate: Mapping[str, Any]) -> None:
        """Keep what was measured of the embeddings' fidelity; a writer may be at work meanwhile.

        The snapshot stays as it is, as a writer may be using it: :meth:`refresh` shows the certificate.

        Raises
        ------
        StorageError
            When the store cannot be written.
        """
        folder = self.path / layout.JOURNAL
        require_no_links(self.path, folder)
        with mutex(folder, guarded=self.path):
            append(self.read_state(), MAIN, {"kind": "certificate", "certificate": dict(certificate)})

    def write_group(self) -> None:
        """Copy the journal's numerics and lengths into the group's metadata, if they differ; for the writer."""
        attributes = {**self.attributes, NUMERICS: self.state.numerics}
        metadata = layout.root_metadata(attributes, len(self), views=bool(self.state.segments))
        path = self.path / layout.GROUP_FILE
        if layout.read_json(path) != metadata:
            write_file(path, layout.json_bytes(metadata))
