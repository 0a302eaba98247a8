"""Turns repeated reads of neighbouring pixels into one decode: a bounded cache of decoded blocks.

A source is decoded in pieces much larger than what one read asks for (a compressed chunk, a whole JPEG), and
neighbouring tiles lie in the same pieces. A run that says beforehand what it will read lets each block go with its
last use; where memory is too small for the others, the block whose next use is farthest goes first, which no
order of reading can better. Without a plan, the least recently used one goes first.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from embedcache.volume.pieces import Piece, SourceReads

CACHE_BYTES = 2 << 30
"""Decoded pixels that one open volume keeps at most, unless told otherwise."""

PLACES_BEHIND = 4
"""Readers run beside each other; a use so many places behind the foremost will not come any more."""

OUTDATED = 1000
"""Outdated ranks that may lie about, beside as many as there are blocks, before they are cleared away."""

Block = npt.NDArray[Any]
Uses = Sequence[tuple[int, int]]
"""Ascending places in the order of reading, each with a number of uses."""


@dataclass
class _Held:
    """A decoded block, and what is known of its further uses: (place, uses left there), next one last."""

    block: Block
    left: list[tuple[int, int]] = field(default_factory=list)


class BlockCache:
    """A thread-safe cache of decoded arrays that counts what is decoded.

    Parameters
    ----------
    limit_bytes : int
        Upper bound of the sum of the blocks' bytes; a single larger block is kept until the next one comes.

    Attributes
    ----------
    limit_bytes : int
        As given; may be changed.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._recent: OrderedDict[Piece, Block] = OrderedDict()  # of no plan, least recently used first
        self._planned: dict[Piece, _Held] = {}
        self._farthest: list[
            tuple[int, int, Piece]
        ] = []  # heap of (-place, -first plane, key), some outdated
        self._let_go: dict[Piece, list[tuple[int, int]]] = {}  # uses left of blocks that had to go
        self._uses: Callable[[Piece], Uses] | None = None
        self._foremost = self._swept = 0
        self._busy: set[Piece] = set()
        self._changed = threading.Condition()
        self._bytes = 0
        self._reads = SourceReads()

    @property
    def bytes_held(self) -> int:
        """Bytes of all blocks held now."""
        return self._bytes

    @property
    def reads(self) -> SourceReads:
        """Blocks and bytes decoded so far."""
        return self._reads

    def count(self, blocks: int, size: int) -> None:
        """Count what was read without being kept."""
        with self._changed:
            self._reads = SourceReads(self._reads.chunks + blocks, self._reads.bytes + size)

    def expect(self, uses: Callable[[Piece], Uses] | None) -> None:
        """From now on, ``uses(piece)`` says where a piece is going to be used; None: nothing is known."""
        with self._changed:
            for key, held in self._planned.items():
                self._recent[key] = held.block
            self._planned, self._farthest, self._let_go = {}, [], {}
            self._uses, self._foremost, self._swept = uses, 0, 0
            known = {} if uses is None else {key: list(uses(key))[::-1] for key in self._recent}
            for key, left in known.items():
                if left:
                    self._plan(key, _Held(self._recent.pop(key), left))

    def get(self, piece: Piece, make: Callable[[], Block]) -> Block:
        """The block of a piece; made by ``make()`` when it is not held, once for all threads that wait for it."""
        return self.gather([[piece]], lambda _: [make()])[piece]

    def gather(
        self, requests: Sequence[Sequence[Piece]], decode: Callable[[list[Piece]], Sequence[Block]]
    ) -> dict[Piece, Block]:
        """Blocks of several pieces; what is not held is decoded, request by request, by the first thread.

        Parameters
        ----------
        requests : sequence of sequences
            Pieces; those of one request are decoded together.
        decode : callable
            Turns pieces into their blocks; never called twice at a time for one piece.
        """
        found: dict[Piece, Block] = {}
        while True:
            with self._changed:
                mine = self._take(requests, found)
                while mine is None:
                    self._changed.wait()
                    mine = self._take(requests, found)
                if not mine:
                    return found
            try:
                blocks = decode(mine)
                uses = [self._uses_of(key) for key in mine]
                with self._changed:
                    for key, block, left in zip(mine, blocks, uses, strict=True):
                        found[key] = block
                        self._keep(key, block, left)
            finally:
                with self._changed:
                    self._busy.difference_update(mine)
                    self._changed.notify_all()

    def clear(self) -> None:
        """Let go of all blocks."""
        with self._changed:
            self._recent.clear()
            self._planned, self._farthest, self._let_go = {}, [], {}
            self._bytes = 0

    def _take(self, requests: Sequence[Sequence[Piece]], found: dict[Piece, Block]) -> list[Piece] | None:
        """Collect what is held, claim what to decode next: nothing when all is found, None to wait."""
        waiting = False
        for request in requests:
            lacking = [piece for piece in request if piece not in found and not self._found(piece, found)]
            free = [piece for piece in lacking if piece not in self._busy] if lacking else lacking
            if free:
                self._busy.update(free)
                return free
            waiting = waiting or bool(lacking)
        return None if waiting else []

    def _found(self, piece: Piece, found: dict[Piece, Block]) -> bool:
        block = self._use(piece)
        if block is not None:
            found[piece] = block
        return block is not None

    def _use(self, key: Piece) -> Block | None:
        held = self._planned.get(key)
        if held is not None:
            self._used(key, held)
            return held.block
        block = self._recent.get(key)
        if block is not None:
            self._recent.move_to_end(key)
        return block

    def _used(self, key: Piece, held: _Held) -> None:
        """Count one use; the block goes with its last one."""
        place, uses = held.left.pop()
        self._foremost = max(self._foremost, place)
        if uses > 1:
            held.left.append((place, uses - 1))
        elif held.left:
            self._rank(key, held)
        else:
            del self._planned[key]
            self._bytes -= held.block.nbytes

    def _uses_of(self, key: Piece) -> list[tuple[int, int]]:
        """Uses left of a block that has just been decoded, next one last; the one it was decoded for included."""
        uses = self._uses
        if uses is None:
            return []
        left = self._let_go.pop(key, None)
        return list(uses(key))[::-1] if left is None else left

    def _keep(self, key: Piece, block: Block, left: list[tuple[int, int]]) -> None:
        block.flags.writeable = False
        self._reads = SourceReads(self._reads.chunks + 1, self._reads.bytes + block.nbytes)
        self._bytes += block.nbytes
        if left:
            held = _Held(block, left)
            self._plan(key, held)
            self._used(key, held)
        else:
            self._recent[key] = block
        while self._bytes > self.limit_bytes and len(self._recent) + len(self._planned) > 1:
            self._let_one_go()

    def _plan(self, key: Piece, held: _Held) -> None:
        self._planned[key] = held
        self._rank(key, held)

    def _rank(self, key: Piece, held: _Held) -> None:
        # At one place, planes are read in ascending order.
        heapq.heappush(self._farthest, (-held.left[-1][0], -key.z0, key))
        if len(self._farthest) > 2 * len(self._planned) + OUTDATED:
            self._farthest = [(-held.left[-1][0], -key.z0, key) for key, held in self._planned.items()]
            heapq.heapify(self._farthest)

    def _let_one_go(self) -> None:
        """Drop what no plan wants, then what a plan no longer wants, then what it wants last."""
        if self._recent:
            _, block = self._recent.popitem(last=False)
            self._bytes -= block.nbytes
            return
        if self._drop_overtaken():
            return
        while self._farthest:
            place, _, key = heapq.heappop(self._farthest)
            held = self._planned.get(key)
            if held is not None and held.left[-1][0] == -place:
                self._let_go[key] = self._planned.pop(key).left
                self._bytes -= held.block.nbytes
                return

    def _drop_overtaken(self) -> bool:
        """Drop blocks whose uses were passed by (their tiles failed); looked for once at each place."""
        overtaken = []
        if self._swept < self._foremost:
            self._swept = self._foremost
            behind = self._foremost - PLACES_BEHIND
            overtaken = [key for key, held in self._planned.items() if held.left[-1][0] < behind]
        for key in overtaken:
            self._bytes -= self._planned.pop(key).block.nbytes
        return bool(overtaken)
