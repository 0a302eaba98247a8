"""Turns a damaged store into a whole one: what follows from the rest is rebuilt, what is broken is encoded again.

First the small files are mended from the journal, then every shard is verified. A shard whose chunks are right
gets its file anew from them; broken tiles are encoded again from pixels whose digest is the recorded one, under
the numerics of their shard, and where that gives the recorded bits the file is byte for byte what it was. What is
intact is not touched. Each file is replaced in one step: the command can be killed anywhere and run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.encode.care.against import recorded_digests
from embedcache.encode.care.origin import (
    command_words,
    encoder_of,
    read_again,
    source_of,
    take_over_words,
    weights_of,
)
from embedcache.errors import (
    EXIT_CORRUPTION,
    EXIT_DONE,
    CorruptionError,
    EmbedcacheError,
    InputError,
    MismatchError,
    StorageError,
)
from embedcache.files import CLAIMS, range_lock, require_no_links
from embedcache.progress import Progress, Silent
from embedcache.sam.encoder import Encoder, resolve_device
from embedcache.sam.weights import Weights
from embedcache.store import EmbeddingStore, StoreWriter, layout
from embedcache.store.care.mend import mend_decoder, mend_files
from embedcache.store.care.rebuild import rebuild_shard
from embedcache.store.care.verification import Scope
from embedcache.store.care.verify import judge_shard, verify
from embedcache.store.care.verify_shard import ShardVerdict
from embedcache.store.journal.newest import NewestState
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.shards.shard import Stored
from embedcache.volume import Volume

_NAMED = 10


@dataclass
class RepairResult:
    """What was broken and what became of it.

    Parameters
    ----------
    store : Path
        The folder.
    checked : int
        Recorded embeddings that were verified.
    broken : int
        Those that could not be read as recorded.
    repaired : int
        Those of them that can now.
    encoded : int
        Tiles that went through the encoder.
    mended : list of str
        Files that were rebuilt, in words.
    unmended : list of str
        What is still damaged, and what can be done about it.
    dropped : list of str
        Lines of the journal that were left out, in words.
    """

    store: Path
    checked: int = 0
    broken: int = 0
    repaired: int = 0
    encoded: int = 0
    mended: list[str] = field(default_factory=list)
    unmended: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 4 when something is still damaged."""
        return EXIT_CORRUPTION if self.unmended else EXIT_DONE

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "store": str(self.store),
            "checked": self.checked,
            "broken": self.broken,
            "repaired": self.repaired,
            "mended": self.mended,
            "unmended": self.unmended,
            "dropped": self.dropped,
            "tiles_encoded": self.encoded,
        }


def repair(
    path: Path | str,
    *,
    volume: str | None = None,
    checkpoint: str | None = None,
    device: str = "auto",
    digests: bool = False,
    drop_lines: bool = False,
    progress: Progress | None = None,
) -> RepairResult:
    """Verify all of a store and mend what is broken.

    Parameters
    ----------
    path : Path or str
        The store.
    volume, checkpoint : str, optional
        Where tiles have to be encoded again; by default those that the store was made from.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    digests : bool
        Compare each file's SHA-256 as well: bytes that were changed with their checksums kept are encoded again.
    drop_lines : bool
        Leave out lines of the journal that cannot be mended; what they spoke of is missing then.
    progress : Progress, optional
        Where to report to; silent by default.

    Raises
    ------
    InputError
        When the folder is no store.
    CorruptionError
        When its journal is a link: nothing is written outside the store.
    MismatchError
        When pixels of broken tiles are not the ones that were encoded; all other damage is mended by then.
    LockedError
        When somebody is writing the store.
    StorageError
        When the disk refuses; run it again.
    """
    root, progress = Path(path).absolute(), progress or Silent()
    result = RepairResult(root)
    if (root / layout.JOURNAL).is_dir():
        require_no_links(root, root / layout.JOURNAL / CLAIMS)  # the lock is written there
        with range_lock(root / layout.JOURNAL, None, guarded=root):
            mended = mend_files(root, drop=drop_lines)
        result.mended += mended.done
        result.unmended += mended.left
        result.dropped += mended.dropped
    found = verify(root, Scope(digests=digests), progress)
    result.checked, result.broken = found.checked, found.corrupt + found.missing
    if found.opened is None:
        result.unmended += [
            f"{problem.where}: {problem.reason}"
            for problem in found.problems
            if problem.what == "store"
            or not result.unmended  # of a journal that is gone nothing was told yet
        ]
        return result
    store = found.opened
    decoder = any(problem.what == "decoder" for problem in found.problems)
    if found.broken or decoder:
        with store.writer() as writer, ExitStack() as stack:
            _Repair(store, writer, result, volume, checkpoint, device, digests, progress, stack).do(
                sorted(found.broken), decoder
            )
    known = {problem.where for problem in found.problems if problem.what in ("metadata", "tile table")}
    result.unmended += sorted(known)
    return result


class _Repair:
    """One repair of the shards of a store that is held for writing."""

    def __init__(
        self,
        store: EmbeddingStore,
        writer: StoreWriter,
        result: RepairResult,
        volume: str | None,
        checkpoint: str | None,
        device: str,
        digests: bool,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        self._store, self._writer, self._result = store, writer, result
        self._volume, self._checkpoint, self._device = volume, checkpoint, device
        self._digests, self._progress, self._stack = digests, progress, stack
        self._opened: tuple[Volume, Weights] | None = None
        self._encoders: dict[int, Encoder] = {}
        self._changed: list[int] = []

    def do(self, shards: list[int], decoder: bool) -> None:
        """Mend the shards, then the decoder's file.

        Raises
        ------
        MismatchError
            At the end, when pixels of some tiles are not the recorded ones.
        """
        self._progress.start("mending shards", len(shards))
        newest = NewestState(self._store)
        for shard in shards:
            verdict = judge_shard(self._store, newest, shard, digests=self._digests)
            try:
                if not verdict.intact:
                    self._mend_shard(verdict)
            except CorruptionError as error:
                self._result.unmended.append(error.message)
            self._progress.advance()
        self._progress.finish()
        self._writer.settle()  # a replacement that was announced may be the one that was mended
        if decoder:
            self._mend_decoder()
        if self._changed:
            names = [self._store.describe(number) for number in self._changed]
            raise MismatchError(
                f"The pixels of {len(names)} broken tiles are not the ones that were encoded: "
                f"{'; '.join(names[:_NAMED])}. Their shards were left as they are, everything else was mended.",
                hint="Name the volume as it was with --volume, or take the change over: "
                + take_over_words(self._store, self._volume),
            )

    def _mend_shard(self, verdict: ShardVerdict) -> None:
        record, base = verdict.record, verdict.record.shard * self._store.shard_tiles
        broken = verdict.scales | verdict.wrong if verdict.there else verdict.broken
        if broken or not rebuild_shard(self._store, record, {}):
            numbers = np.array([base + slot for slot in broken or record.slots.tolist()], dtype=np.int64)
            digests = recorded_digests(self._store, numbers)
            new = self._encode(digests, record.numerics)
            if new is None:
                return
            if not rebuild_shard(self._store, record, {tile - base: stored for tile, stored in new.items()}):
                self._commit_other_bits(record.shard, new, digests, record.numerics)
        after = judge_shard(self._store, NewestState(self._store), record.shard, digests=self._digests)
        self._result.repaired += len(verdict.broken) - len(after.broken)
        path = str(layout.shard_path(self._store.path, record.shard))
        (self._result.mended if after.intact else self._result.unmended).append(path)

    def _commit_other_bits(
        self, shard: int, new: Mapping[int, Stored], digests: Mapping[int, str], numerics: int | None
    ) -> None:
        """Store embeddings that came out with other bits (on another machine): the record has to say so."""
        self._writer.decide_numerics(self._encoders[numerics or 0].numerics, allow=True)
        self._progress.say(f"shard {shard}: encoded to other bits than before; the journal records these.")
        self._writer.commit_shard(shard, embeddings=new, input_digests=digests)

    def _encode(self, digests: Mapping[int, str], numerics: int | None) -> dict[int, Stored] | None:
        """Encode broken tiles again; None where that cannot be, which is then named in the result."""
        try:
            volume, weights = self._sources()
            encoder = self._encoder(weights, numerics or 0)
        except (InputError, MismatchError) as error:
            names = [self._store.describe(number) for number in digests]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            self._result.unmended.append(
                f"{'; '.join(names[:_NAMED])}{more}: {error.message} "
                f"Then: {command_words(self._store, self._volume, self._checkpoint)}"
            )
            return None
        new: dict[int, Stored] = {}
        known: dict[str, Stored] = {}
        for number, digest in digests.items():
            if digest in known:
                new[number] = known[digest]
                continue
            tile = read_again(self._store, volume, number, digest)
            if tile.input is None:
                self._changed.append(number)
                continue
            embedding = encoder(torch.from_numpy(tile.input)[None])
            self._result.encoded += 1
            new[number] = known[digest] = self._stored(embedding)
        return new if len(new) == len(digests) else None

    def _stored(self, embedding: torch.Tensor) -> Stored:
        if self._store.spec.store_dtype == "int8":
            values, scales = quantise(embedding)
            return Quantised(values[0].numpy(), scales[0].numpy())
        half: np.ndarray[Any, np.dtype[np.float16]] = embedding[0].to(torch.float16).numpy()
        return half

    def _sources(self) -> tuple[Volume, Weights]:
        if self._opened is None:
            weights = weights_of(self._store, self._checkpoint, self._progress)
            self._opened = (
                self._stack.enter_context(source_of(self._store, self._volume, "--volume")),
                weights,
            )
        return self._opened

    def _encoder(self, weights: Weights, numerics: int) -> Encoder:
        if numerics not in self._encoders:
            device = resolve_device(self._device)
            self._encoders[numerics] = encoder_of(self._store, weights, device, numerics)
        return self._encoders[numerics]

    def _mend_decoder(self) -> None:
        path = self._store.path / layout.DECODER
        try:
            weights = weights_of(self._store, self._checkpoint, self._progress)
            if mend_decoder(self._store, weights.decoder_state()):
                self._result.mended.append(f"{path}: written again from the checkpoint")
                return
            reason = "this checkpoint's decoder is another one"
        except StorageError:
            raise
        except EmbedcacheError as error:
            reason = error.message
        self._result.unmended.append(
            f"{path}: {reason} Then: {command_words(self._store, self._volume, self._checkpoint)}"
        )
