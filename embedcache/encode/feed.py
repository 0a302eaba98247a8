"""Turns tiles as they are read into batches that are ready on the encoder's device, in a thread of its own.

Here it is decided what becomes of a tile: left out, copied from one of equal pixels, or encoded. There is only so
much room for batches; when the encoder or the writer falls behind, this thread waits, and the readers with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from torch import Tensor

from embedcache.encode.slots import Slot
from embedcache.encode.stages import Stages
from embedcache.encode.threads import join_surely, started
from embedcache.encode.tile_reader import ReadAhead, ReadTile
from embedcache.encode.twins import Fate, Twins
from embedcache.store.shards.shard import Stored

_MOST_DECIDED = 256
"""Tiles of one batch at most, those that are not encoded counted in."""


@dataclass(frozen=True)
class Decided:
    """A tile, and its fate: an embedding to copy, why there is none, or what to do; None: it is left out."""

    tile: ReadTile
    fate: Stored | str | Fate | None


@dataclass
class Batch:
    """Tiles in their order, and the inputs of those that are to be encoded.

    Parameters
    ----------
    decided : list of Decided
        All of them; ``fate`` is None for those left out.
    slot : Slot or None
        Holds the inputs; None when none is to be encoded.
    """

    decided: list[Decided] = field(default_factory=list)
    slot: Slot | None = None

    @property
    def to_encode(self) -> list[ReadTile]:
        """The tiles whose inputs the slot holds, in order of its rows."""
        return [one.tile for one in self.decided if one.fate is Fate.ENCODE]

    def inputs(self) -> Tensor:
        """(B, 3, 1024, 1024) float32 on the device."""
        assert self.slot is not None
        return self.slot.rows(len(self.to_encode))


class Feed:
    """Batches, ready ahead of the encoder; used as a context.

    Parameters
    ----------
    reader : ReadAhead
        In its context.
    twins : Twins
        Says which tiles need no encoding.
    slots : iterable of Slot
        Room for batches.
    rows : callable
        How many tiles the encoder takes at once now.
    stages : Stages
        Where time is noted.
    """

    def __init__(
        self, reader: ReadAhead, twins: Twins, slots: Iterable[Slot], rows: Callable[[], int], stages: Stages
    ) -> None:
        self._reader, self._twins, self._rows, self._stages = reader, twins, rows, stages
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._ready: SimpleQueue[Batch | BaseException | None] = SimpleQueue()

    def __enter__(self) -> Feed:
        self._thread = started(self._work, "embedcache-feed")
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.end()
        self._free.put(None)
        join_surely(self._thread)

    def get(self, timeout: float) -> Batch | None:
        """The next batch; None after the last one.

        Raises
        ------
        queue.Empty
            When none was ready in time.
        Exception
            What ended the reading.
        """
        found = self._ready.get(timeout=timeout)
        if isinstance(found, BaseException):
            raise found
        return found

    def give_back(self, slot: Slot) -> None:
        """Tell that a batch's inputs are no longer needed."""
        self._free.put(slot)

    @property
    def awaited(self) -> tuple[int, float] | None:
        """The tile that is waited for, and since when (``time.monotonic``); None while none is."""
        return self._reader.awaited

    def _work(self) -> None:
        try:
            batch, chosen = Batch(), 0
            for tile in self._reader:
                fate = self._fate(tile)
                # only what is to be encoded keeps its pixels
                batch.decided.append(
                    Decided(tile if fate is Fate.ENCODE else replace(tile, scaled=None), fate)
                )
                chosen += fate is Fate.ENCODE
                if chosen >= self._rows() or len(batch.decided) >= _MOST_DECIDED:
                    if not self._deliver(batch):
                        return
                    batch, chosen = Batch(), 0
            if self._deliver(batch):
                self._ready.put(None)
        except BaseException as error:  # whatever it is, it ends the run
            self._ready.put(error)

    def _fate(self, tile: ReadTile) -> Stored | str | Fate | None:
        if tile.scaled is None:
            return None
        with self._stages.measure("read"):
            return self._twins.fate(tile.digest)

    def _deliver(self, batch: Batch) -> bool:
        """Make a batch ready once there is room; whether the run goes on."""
        slot = self._free.get()
        if slot is None:
            return False
        if batch.to_encode:
            slot.fill(batch.to_encode)
        batch.slot = slot
        self._ready.put(batch)
        return True
